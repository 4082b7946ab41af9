"""What runs on a device: record, encode, spool, send. Self-contained; imports no other room."""
