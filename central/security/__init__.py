"""The centre's keys."""
