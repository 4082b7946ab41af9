"""Errors of trained runs on test data."""
