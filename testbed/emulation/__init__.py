"""Emulated links: serial, TCP, radio energy."""
