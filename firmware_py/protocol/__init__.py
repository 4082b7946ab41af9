"""Records, frames and messages on the wire."""
