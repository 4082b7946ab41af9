"""The base error of exports."""

from central.errors import CentralError


class ExportError(CentralError, ValueError):
    """A map cannot be exported as asked."""
