"""What one direction of an emulated link does to bytes: rate, delay, jitter, bit errors, loss of all.

Pure logic: the clock is the caller's, so that a proxy, a serial line and a test can drive it alike.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

# A rate is kept by letting bytes go in pieces that take so long, but no longer than an Ethernet segment.
PIECE_S = 0.005
PIECE_BYTES = 1460
# A slow link takes in so much more than it has sent; the rest stays with the sender, who can tell then.
BACKLOG_S = 0.05
BACKLOG_BYTES = 1 << 20


@dataclass
class Conditions:
    """Of one direction; every field may be changed while bytes pass.

    ``rate_bytes_per_s`` None is unlimited (a serial line 8N1 carries baud / 10). A piece of bytes arrives
    ``delay_s`` after it was sent, plus up to ``jitter_s``, evenly spread; order is kept. ``bit_error_rate``
    is the probability of each bit to be wrong. ``swallow`` loses everything.
    """

    rate_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bit_error_rate: float = 0.0
    swallow: bool = False


class Shaper:
    """Bytes on their way in one direction under ``conditions``; times are seconds of any one clock."""

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        self._conditions = conditions
        self._rng = rng
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._free_s = 0.0
        self._arrival_s = 0.0
        self.swallowed_bytes = 0
        self.bit_errors = 0

    def __len__(self) -> int:
        """Bytes on their way."""
        return self._bytes

    def ready_s(self, now_s: float) -> float | None:
        """When more bytes may go in: ``now_s`` or later, None while only what comes out can make room."""
        if self._bytes > BACKLOG_BYTES:
            return None
        return max(now_s, self._free_s - BACKLOG_S) if self._conditions.rate_bytes_per_s else now_s

    def push(self, data: bytes, now_s: float) -> None:
        """Send bytes."""
        conditions = self._conditions
        if conditions.swallow:
            self.swallowed_bytes += len(data)
            return
        data = self._with_errors(data)
        rate = conditions.rate_bytes_per_s
        size = max(1, min(PIECE_BYTES, int(rate * PIECE_S))) if rate else len(data)
        # A rate that was lifted must not hold back what follows.
        self._free_s = max(self._free_s, now_s) if rate else now_s
        for start in range(0, len(data), size or 1):
            piece = data[start : start + size]
            if rate:
                self._free_s += len(piece) / rate
            delay_s = conditions.delay_s + self._rng.uniform(0.0, conditions.jitter_s)
            self._arrival_s = max(self._arrival_s, self._free_s + delay_s)
            self._on_the_way.append((self._arrival_s, piece))
            self._bytes += len(piece)

    def due_s(self) -> float | None:
        """When the next bytes arrive."""
        return self._on_the_way[0][0] if self._on_the_way else None

    def pop(self, now_s: float) -> bytes:
        """All bytes that have arrived by ``now_s``."""
        arrived = []
        while self._on_the_way and self._on_the_way[0][0] <= now_s:
            arrived.append(self._on_the_way.popleft()[1])
        data = b"".join(arrived)
        self._bytes -= len(data)
        return data

    def clear(self) -> None:
        """Lose what is on its way."""
        self.swallowed_bytes += self._bytes
        self._on_the_way.clear()
        self._bytes = 0
        self._free_s = self._arrival_s = 0.0

    def _with_errors(self, data: bytes) -> bytes:
        probability = self._conditions.bit_error_rate
        if not probability:
            return data
        damaged = bytearray(data)
        # From one error to the next: as many draws as errors, not as bits.
        place = self._gap(probability)
        while place < 8 * len(damaged):
            damaged[place // 8] ^= 1 << (place % 8)
            self.bit_errors += 1
            place += 1 + self._gap(probability)
        return bytes(damaged)

    def _gap(self, probability: float) -> int:
        """Bits that are right before the next that is wrong."""
        if probability >= 1.0:
            return 0
        # The whole part of an exponential variate is geometric.
        return int(self._rng.expovariate(-math.log1p(-probability)))
