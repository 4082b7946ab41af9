"""Decimate, compand and round to int8 by table: ``firmware_py.inference.companding`` for integer samples.

A block's mean is its sum of int16 counts times a constant. asinh(k x)/c, scaling and rounding together are a staircase
of 255 thresholds on that sum. A microcontroller therefore only adds integers and looks the sum up, without floats and
heap.

``firmware_py.inference.companding`` computes in float32. For sums within its rounding error of a threshold, the two may
differ by one step.
"""

import math
from array import array

from firmware_py.micropython.errors import SetupError

# Larger sums exceed every threshold: 2**15 counts a sample; a small integer on every board.
FAR = 1 << 29


class RecordingError(SetupError):
    """The recording has no valid scale, or more receivers than the encoder."""


def thresholds_into(table, companding, step, scale, zero_point):
    """Compute the 255 sums at which the int8 value increases by one, from -128.

    ``companding`` is (k, c, thin); ``step`` is the value of one count.

    Raises:
        RecordingError: ``step`` is not positive and finite.
    """
    k, c, thin = companding
    if not (step > 0 and math.isfinite(step)):
        raise RecordingError("recording: expected a positive value of one count, got %r" % step)
    for i in range(255):
        # Rounding to nearest: the value -127 + i begins half a step below itself. The limit 60 keeps sinh within
        # float32.
        x = max(-60.0, min(60.0, c * scale * (i - 127.5 - zero_point)))
        table[i] = math.ceil(max(-FAR, min(FAR, math.sinh(x) * thin / (k * step))))


class Compander:
    """Input of the encoder, filled from the blocks of a source.

    ``values``, the model's buffer, is filled with int8 ``(time, width, sources)``, row-major; ``block`` holds int16
    ``(thin, receivers)``.
    """

    def __init__(self, bundle, receivers, values):
        if not 0 < receivers <= bundle.width:
            raise RecordingError("recording: expected 1 to %d receivers, got %d" % (bundle.width, receivers))
        self._bundle = bundle
        self._receivers = receivers
        self._table = array("i", [0] * 255)
        self._step = None
        self.block = array("h", [0] * (bundle.thin * receivers))
        self._input = values

    def set_step(self, step):
        """Set the value of one count; a change recomputes the table.

        Raises:
            RecordingError: ``step`` is not positive and finite.
        """
        if step != self._step:
            bundle = self._bundle
            thresholds_into(
                self._table,
                (bundle.k, bundle.c, bundle.thin),
                step,
                bundle.input_scale,
                bundle.input_zero_point,
            )
            self._step = step

    def fill(self, source, feed):
        """Read a whole recording from ``source``, shot by shot; return False if it is cut short.

        ``source.read_into(block)`` fills the block with the next samples. ``feed`` is called often (watchdog).
        """
        if self._receivers < self._bundle.width:
            # Receivers of the encoder that this device lacks are zero.
            for i in range(len(self._input)):
                self._input[i] = self._bundle.input_zero_point & 0xFF
        for shot in range(self._bundle.sources):
            for time in range(self._bundle.time):
                if not source.read_into(self.block):
                    return False
                self._take(time, shot)
                feed()
        return True

    def _take(self, time, shot):
        block = self.block
        receivers = self._receivers
        n = len(block)
        table = self._table
        sources = self._bundle.sources
        at = time * self._bundle.width * sources + shot
        for receiver in range(receivers):
            total = 0
            i = receiver
            while i < n:
                total += block[i]
                i += receivers
            low = 0
            high = 255
            while low < high:
                middle = (low + high) >> 1
                if total < table[middle]:
                    high = middle
                else:
                    low = middle + 1
            # The value is low - 128; as a byte, that flips the top bit.
            self._input[at] = low ^ 0x80
            at += sources
