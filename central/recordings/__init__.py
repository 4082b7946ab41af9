"""Recordings on request: ask devices for their part of an event, keep it, assemble the gather."""
