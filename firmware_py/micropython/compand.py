"""Thin, compand and round to int8 by table: ``firmware_py.inference.companding`` for integer samples.

A block's mean is its sum of int16 counts, an integer, times a constant; asinh(k x)/c, the scale and the rounding
are steps of 255 thresholds on that sum. So a microcontroller adds integers and looks up where the sum falls: no
float, and so no heap, for a sample. ``firmware_py.inference.companding`` works in float32: where a sum is
within its rounding of a threshold, the two may differ by one step.
"""

import math
from array import array

# Sums beyond this are past every threshold: 2**15 counts a sample, and a small integer on every board.
FAR = 1 << 29


class RecordingError(ValueError):
    """A recording whose samples have no scale, or of more receivers than the encoder takes."""


def thresholds_into(table, companding, step, scale, zero_point):
    """The 255 sums at which the int8 value goes up by one, from -128; ``companding`` is (k, c, thin).

    ``step`` is the value of one count. Raises ``RecordingError`` unless it is positive and finite.
    """
    k, c, thin = companding
    if not (step > 0 and math.isfinite(step)):
        raise RecordingError("recording: expected a positive value of one count, got %r" % step)
    for i in range(255):
        # Rounding to nearest: the value -127 + i begins half a step below itself. 60 keeps sinh in float32.
        x = max(-60.0, min(60.0, c * scale * (i - 127.5 - zero_point)))
        table[i] = math.ceil(max(-FAR, min(FAR, math.sinh(x) * thin / (k * step))))


class Compander:
    """The encoder's input, filled from the blocks of a source.

    ``input`` holds int8 ``(time, width, sources)``, row-major; ``block`` int16 ``(thin, receivers)``.
    """

    def __init__(self, bundle, receivers):
        if not 0 < receivers <= bundle.width:
            raise RecordingError("recording: expected 1 to %d receivers, got %d" % (bundle.width, receivers))
        self._bundle = bundle
        self._receivers = receivers
        self._table = array("i", [0] * 255)
        self._step = None
        self.block = array("h", [0] * (bundle.thin * receivers))
        # Receivers that the encoder takes and this device lacks are silent.
        self.input = bytearray(
            bytes([bundle.input_zero_point & 0xFF]) * (bundle.time * bundle.width * bundle.sources)
        )

    def set_step(self, step):
        """Value of one count from here on; a new one costs a new table. Raises ``RecordingError``."""
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
        """Take a whole recording from ``source``, source after source; False when it breaks off.

        ``source.read_into(block)`` fills the block with the next samples. ``feed`` is called often.
        """
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
            # The value is low - 128; as a byte, the same with its top bit turned over.
            self.input[at] = low ^ 0x80
            at += sources
