"""Base of the errors that end a start."""


class SetupError(Exception):
    """A restart does not help; the message says what to change."""
