"""The centre: receive, journal, assemble, fuse, store, show."""
