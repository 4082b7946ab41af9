"""Shape one direction of an emulated link: rate, delay, jitter, segment loss, bit errors, blackout.

The caller provides the clock, so a proxy, a serial line and a test can use the same logic.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from dataclasses import dataclass

# Longest transmission time of one piece; pieces are also limited to a TCP segment on Ethernet.
PIECE_S = 0.005
SEGMENT_BYTES = 1460
# Linux' minimum retransmission time-out (RFC 6298 asks for 1 s), and the number of later segments whose duplicate
# acknowledgements report a loss sooner (RFC 5681).
RETRANSMISSION_TIMEOUT_S = 0.2
DUPLICATES = 3
# Backlog that a slow link accepts, in seconds of its rate and in bytes; a full backlog blocks the sender.
BACKLOG_S = 0.05
BACKLOG_BYTES = 1 << 20


@dataclass
class Conditions:
    """Conditions of one direction; every field may be changed while bytes pass.

    Attributes:
        rate_bytes_per_s: None is unlimited. A serial line (8N1) carries baud / 10.
        delay_s: Time from sending to arrival of a piece.
        jitter_s: Greatest additional delay, uniformly distributed; order is kept.
        loss: Probability that a TCP segment is lost. Its bytes are retransmitted: it and all later segments are delayed
            by a round trip (twice ``delay_s``). In a message of a few segments, a time-out is added.
        bit_error_rate: Probability that a bit is wrong.
        swallow: Drop everything.
    """

    rate_bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bit_error_rate: float = 0.0
    swallow: bool = False


class Medium:
    """A channel that sends one piece at a time: a line of its own, or a radio channel that several links share."""

    def __init__(self) -> None:
        self.free_s = 0.0
        self._lock = threading.Lock()

    def reserve(self, now_s: float, lasts_s: float) -> float:
        """Reserve the next free ``lasts_s`` from ``now_s`` on; return the end time."""
        with self._lock:
            self.free_s = max(self.free_s, now_s) + lasts_s
            return self.free_s


@dataclass(frozen=True)
class Transfer:
    """``size_bytes`` on the air or the wire from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    size_bytes: int


class Shaper:
    """Bytes in transit in one direction under ``conditions``; times are seconds of any one clock.

    Links that share a channel share ``medium``. If ``transfers`` is a list, transfers are appended to it.
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
        """Return the number of bytes in transit."""
        return self._bytes

    def ready_s(self, now_s: float) -> float | None:
        """Return when more bytes are accepted: ``now_s`` or later; None until bytes have left."""
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
            # After the rate limit is removed, earlier reservations must not delay later bytes.
            sent_s = self._medium.reserve(now_s, len(piece) / rate) if rate else now_s
            self._note(sent_s - len(piece) / rate if rate else sent_s, sent_s, len(piece))
            jitter_s = self._rng.uniform(0.0, self._conditions.jitter_s)
            self._arrival_s = max(self._arrival_s, sent_s + delay_s + jitter_s)
            self._on_the_way.append((self._arrival_s, piece))
            self._bytes += len(piece)

    def _late_s(self, short: bool) -> float:
        """Return the extra delay of a lost segment; in a ``short`` message it includes a time-out."""
        late_s = 0.0
        while self._conditions.loss and self._rng.random() < self._conditions.loss:
            late_s += 2 * self._conditions.delay_s + (RETRANSMISSION_TIMEOUT_S if short else 0.0)
        return late_s

    def _note(self, start_s: float, end_s: float, size_bytes: int) -> None:
        if self._transfers is None:
            return
        # Adjacent pieces form one transfer.
        if self._transfers and start_s - self._transfers[-1].end_s < 1e-6:
            last = self._transfers.pop()
            start_s, size_bytes = last.start_s, last.size_bytes + size_bytes
        self._transfers.append(Transfer(start_s, end_s, size_bytes))

    def due_s(self) -> float | None:
        """Return when the next bytes arrive."""
        return self._on_the_way[0][0] if self._on_the_way else None

    def pop(self, now_s: float) -> bytes:
        """Return all bytes that have arrived by ``now_s``."""
        arrived = []
        while self._on_the_way and self._on_the_way[0][0] <= now_s:
            arrived.append(self._on_the_way.popleft()[1])
        data = b"".join(arrived)
        self._bytes -= len(data)
        return data

    def clear(self) -> None:
        """Drop the bytes in transit; their reserved time on a shared medium is kept."""
        self.swallowed_bytes += self._bytes
        self._on_the_way.clear()
        self._bytes = 0
        self._arrival_s = 0.0

    def _with_errors(self, data: bytes) -> bytes:
        probability = self._conditions.bit_error_rate
        if not probability:
            return data
        damaged = bytearray(data)
        # Draw the distance to the next error: one random number per error, not per bit.
        place = self._gap(probability)
        while place < 8 * len(damaged):
            damaged[place // 8] ^= 1 << (place % 8)
            self.bit_errors += 1
            place += 1 + self._gap(probability)
        return bytes(damaged)

    def _gap(self, probability: float) -> int:
        """Return the number of correct bits before the next error."""
        if probability >= 1.0:
            return 0
        # The integer part of an exponential variate is geometric.
        return int(self._rng.expovariate(-math.log1p(-probability)))
