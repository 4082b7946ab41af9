"""The base error of exports."""


class ExportError(ValueError):
    """A map cannot be exported as asked."""
