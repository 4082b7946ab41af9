"""Where recordings come from: a digitiser, or a file of gathers that is replayed.

A source is an object with

    step            value of one count, in the units that the encoder was trained on
    event           number of the recording at hand, the same on all devices of the survey
    poll()          True when a recording is at hand
    read_into(block) fill int16 ``(thin, receivers)`` with its next samples; False when it breaks off

The samples of the first shot come first. One that knows when a recording began has ``time_us(clock_us, centre_us)``:
microseconds since 1970, given the time now by the board's clock, and by the centre's or 0. One that waits for the shots
of an event has ``feed`` besides: it is set to a function to call meanwhile (the watchdog's), and ``event`` to the last
event recorded. ``Replay`` is one; for a digitiser, a module of the board's own has a function
``open_source(shots, samples, receivers)`` that returns another, such as ``firmware_py/digitisers/ads131m0x.py``.
"""

import time

from firmware_py.micropython.config import ConfigError

_MAGIC = b"\x93NUMPY\x01\x00"


class Replay:
    """Replay gathers of this device's receivers, int16 ``(n, shots, samples, receivers)`` in a .npy file.

    The k-th gather is event k, one each ``interval_ms``; ``position`` gathers are already done.

    Raises:
        ConfigError: The file is missing or has another shape.
    """

    def __init__(self, path, shape, step, interval_ms, position):
        self.step = step
        self.event = position
        self._interval_ms = interval_ms
        self._due_ms = time.ticks_ms()
        try:
            self._file = open(path, "rb")
            head = self._file.read(10)
            if len(head) < 10 or head[:8] != _MAGIC:
                raise ConfigError("%s: expected a .npy file, version 1" % path)
            described = self._file.read(head[8] | head[9] << 8).decode()
            found = _shape(described)
            start = self._file.tell()
            size = self._file.seek(0, 2) - start
        except OSError as error:
            raise ConfigError(
                "%s: cannot be read (%r); expected a .npy file of gathers" % (path, error)
            ) from None
        if "'<i2'" not in described or "'fortran_order': False" not in described or found[1:] != shape:
            raise ConfigError(
                "%s: expected int16 (n, %d, %d, %d) in C order, got %s"
                % ((path,) + shape + (described.strip(),))
            )
        self._gather_bytes = 2 * shape[0] * shape[1] * shape[2]
        if size != found[0] * self._gather_bytes:
            raise ConfigError("%s: %d gathers expected, %d bytes got; copy it again" % (path, found[0], size))
        self._start = start
        self._n = found[0]

    def poll(self):
        if self.event >= self._n or time.ticks_diff(self._due_ms, time.ticks_ms()) > 0:
            return False
        self._due_ms = time.ticks_add(time.ticks_ms(), self._interval_ms)
        self._file.seek(self._start + self.event * self._gather_bytes)
        self.event += 1
        return True

    def read_into(self, block):
        return self._file.readinto(block) == 2 * len(block)


def _shape(described):
    """Return the shape in a .npy header, or () if there is none."""
    try:
        inside = described.split("'shape': (")[1].split(")")[0]
        return tuple([int(part) for part in inside.split(",") if part.strip()])
    except (IndexError, ValueError):
        return ()
