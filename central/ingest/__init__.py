"""Receive, authenticate and count what devices send."""
