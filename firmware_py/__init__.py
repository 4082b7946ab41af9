"""What runs on a device: record, encode, spool, send. Self-contained; imports no other room."""

__version__ = "0.1.0"
