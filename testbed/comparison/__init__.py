"""Comparison of EPIC with its baselines."""
