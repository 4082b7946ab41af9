"""Safe mode: after several failed starts in a row, a device sends its stored records and records nothing.

A device with a fault in the digitiser's module or in the model can then be reached, and its spool be emptied.
A start counts as good once the centre has answered it. One that follows a power cut does not count as failed.
"""

import machine

FAILED_STARTS = 5
# Time in safe mode before the next full start.
TRY_AGAIN_S = 600


class Starts:
    """Count of consecutive failed starts, kept in ``spool``."""

    def __init__(self, spool):
        self._spool = spool
        self.safe = spool.failed_starts >= FAILED_STARTS
        self._count = spool.failed_starts + (0 if _power_came_on() else 1)

    def begin(self, boot):
        """Note this start, before anything is sent under its boot number."""
        self._spool.start(boot, self._count)

    def failed(self, error):
        """This start ends with ``error``, which the next one reports."""
        try:
            self._spool.failed(self._count, repr(error))
        except OSError as also:
            print("spool: %r" % also)

    def good(self):
        """The centre has answered."""
        if self._count:
            self._count = 0
            self._spool.answered()


def _power_came_on():
    try:
        return machine.reset_cause() == machine.PWRON_RESET
    except AttributeError:
        return False


class NoSource:
    """Records nothing."""

    step = 1.0
    event = 0

    def poll(self):
        return False


class NoModel:
    """Encodes nothing, for latents of ``latent`` values."""

    input = b""

    def __init__(self, latent):
        self.latent = latent
