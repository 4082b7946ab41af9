"""What one direction of an emulated link does to bytes: rate, delay, jitter, lost segments, bit errors, loss of all.

Pure logic: the clock is the caller's, so that a proxy, a serial line and a test can drive it alike.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from dataclasses import dataclass

# A rate is kept by letting bytes go in pieces that take so long, but no longer than a TCP segment on Ethernet.
PIECE_S = 0.005
SEGMENT_BYTES = 1460
# Linux' least retransmission time-out (RFC 6298 asks for 1 s), and the segments after a lost one that make
# the receiver's duplicate acknowledgements report it sooner (RFC 5681).
RETRANSMISSION_TIMEOUT_S = 0.2
DUPLICATES = 3
# A slow link takes in so much more than it has sent; the rest stays with the sender, who can tell then.
BACKLOG_S = 0.05
BACKLOG_BYTES = 1 << 20


@dataclass
class Conditions:
    """Of one direction; every field may be changed while bytes pass.

    ``rate_bytes_per_s`` None is unlimited (a serial line 8N1 carries baud / 10). A piece of bytes arrives
    ``delay_s`` after it was sent, plus up to ``jitter_s``, evenly spread; order is kept. ``loss`` is the
    probability of a TCP segment to be lost: bytes are not, but that segment and all behind it come later, by a
    round trip of twice ``delay_s``, and in a message of a few segments by a time-out too. ``bit_error_rate`` is the
    probability of each bit to be wrong. ``swallow`` loses everything.
    """

    rate_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bit_error_rate: float = 0.0
    swallow: bool = False


class Medium:
    """What sends one piece after the other: a line of its own, or a radio channel that several links share."""

    def __init__(self) -> None:
        self.free_s = 0.0
        self._lock = threading.Lock()

    def reserve(self, now_s: float, lasts_s: float) -> float:
        """Take the next free ``lasts_s`` from ``now_s`` on; returns when they end."""
        with self._lock:
            self.free_s = max(self.free_s, now_s) + lasts_s
            return self.free_s


@dataclass(frozen=True)
class Transfer:
    """``size_bytes`` that were on the air, or on the wire, from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    size_bytes: int


class Shaper:
    """Bytes on their way in one direction under ``conditions``; times are seconds of any one clock.

    ``medium`` is where links share one. What was sent is noted in ``transfers``, where that is a list.
    """

    def __init__(
        self,
        conditions: Conditions,
        rng: random.Random,
        medium: Medium | None = None,
        transfers: list[Transfer] | None = None,
    ) -> None:
        self._conditions = conditions
        self._rng = rng
        self._medium = medium or Medium()
        self._transfers = transfers
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
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
        return max(now_s, self._medium.free_s - BACKLOG_S) if self._conditions.rate_bytes_per_s else now_s

    def push(self, data: bytes, now_s: float) -> None:
        """Send bytes."""
        conditions = self._conditions
        if conditions.swallow:
            self.swallowed_bytes += len(data)
            return
        data = self._with_errors(data)
        short = len(data) <= DUPLICATES * SEGMENT_BYTES
        for start in range(0, len(data), SEGMENT_BYTES):
            self._push_segment(data[start : start + SEGMENT_BYTES], now_s, self._late_s(short))

    def _push_segment(self, segment: bytes, now_s: float, late_s: float) -> None:
        rate, delay_s = self._conditions.rate_bytes_per_s, self._conditions.delay_s + late_s
        size = max(1, int(rate * PIECE_S)) if rate else SEGMENT_BYTES
        for start in range(0, len(segment), size):
            piece = segment[start : start + size]
            # A rate that was lifted must not hold back what follows.
            sent_s = self._medium.reserve(now_s, len(piece) / rate) if rate else now_s
            self._note(sent_s - len(piece) / rate if rate else sent_s, sent_s, len(piece))
            jitter_s = self._rng.uniform(0.0, self._conditions.jitter_s)
            self._arrival_s = max(self._arrival_s, sent_s + delay_s + jitter_s)
            self._on_the_way.append((self._arrival_s, piece))
            self._bytes += len(piece)

    def _late_s(self, short: bool) -> float:
        """How much later a segment comes for having been lost; of a ``short`` message, by a time-out too."""
        late_s = 0.0
        while self._conditions.loss and self._rng.random() < self._conditions.loss:
            late_s += 2 * self._conditions.delay_s + (RETRANSMISSION_TIMEOUT_S if short else 0.0)
        return late_s

    def _note(self, start_s: float, end_s: float, size_bytes: int) -> None:
        if self._transfers is None:
            return
        # Pieces without a gap between them are one transfer.
        if self._transfers and start_s - self._transfers[-1].end_s < 1e-6:
            last = self._transfers.pop()
            start_s, size_bytes = last.start_s, last.size_bytes + size_bytes
        self._transfers.append(Transfer(start_s, end_s, size_bytes))

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
        """Lose what is on its way; the time it took of a shared medium stays taken."""
        self.swallowed_bytes += self._bytes
        self._on_the_way.clear()
        self._bytes = 0
        self._arrival_s = 0.0

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
