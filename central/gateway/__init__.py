"""Serve devices on serial ports and plain TCP."""
