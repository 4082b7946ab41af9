"""Safe mode: after starts that failed one after another, a device sends what it has and records nothing.

A fault in the digitiser's module or in the model then keeps nobody from reaching the device, nor the spool from being
emptied. A start counts as good once the centre has answered it. One that follows a power cut does not count as failed.
"""

import os

import machine

STARTS = "starts"
FAILED_STARTS = 5
# After this long the device tries a whole start again.
TRY_AGAIN_S = 600


class Starts:
    """The count of starts in a row that nothing came of, in the file ``path``."""

    def __init__(self, path=STARTS):
        self._path = path
        self._count = self._read()
        self.safe = self._count >= FAILED_STARTS
        if not _power_came_on():
            self._write(self._count + 1)

    def good(self):
        """The centre has answered."""
        if self._count:
            self._count = 0
            try:
                os.remove(self._path)
            except OSError:
                pass

    def _read(self):
        try:
            with open(self._path) as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def _write(self, count):
        self._count = count
        try:
            with open(self._path, "w") as file:
                file.write("%d\n" % count)
        except OSError as error:
            # A full or failing flash must not keep the device from starting.
            print("epic: %s: cannot be written (%r)" % (self._path, error))


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
