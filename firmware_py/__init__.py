"""Run a device: record, encode, spool, send. Self-contained; imports no other package."""

__version__ = "0.1.0"
