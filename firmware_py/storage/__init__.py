"""Records not acknowledged yet: spool and send window."""
