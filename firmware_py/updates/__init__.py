"""Receive, verify and install bundles."""
