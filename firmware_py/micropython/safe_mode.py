"""Safe mode: after starts that failed one after another, a device sends what it has and records nothing.

A fault in the digitiser's module or in the model then keeps nobody from reaching the device, nor the spool from being
emptied. A start counts as good once the centre has answered it. One that follows a power cut does not count as failed.
"""

import machine

FAILED_STARTS = 5
# After this long the device tries a whole start again.
TRY_AGAIN_S = 600


class Starts:
    """The starts in a row that nothing came of, as ``spool`` has counted them."""

    def __init__(self, spool):
        self._spool = spool
        self.safe = spool.failed_starts >= FAILED_STARTS
        self._count = spool.failed_starts + (0 if _power_came_on() else 1)

    def begin(self, boot):
        """Note this start, before anything is sent under its boot number."""
        self._spool.start(boot, self._count)

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

    def __init__(self, latent):
        self.latent = latent
