"""What a device sends next: fresh records, then the backlog, each again while it has no answer.

A record is fresh for ``FRESH_S``, as long as the centre by default waits with an event for its other devices.
While a backlog drains, a quarter of the window is kept for fresh records, so that they never wait behind it;
within both, the oldest goes first.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator

from firmware_py.storage.spool import Spool, Spooled

FRESH_S = 10.0
RESEND_MAX_S = 30.0


class Window:
    """At most ``size`` records of ``spool`` that are sent and not answered.

    The answer to a record is waited for up to ``resend_s``, then twice that and so on to 30 s, each less a
    random part, so that devices that a centre's return finds waiting do not all speak at once.
    """

    def __init__(self, spool: Spool, size: int, resend_s: float) -> None:
        self._spool = spool
        self._size = size
        self._kept_for_fresh = size // 4
        self._resend_s = resend_s
        # (boot, sequence) -> (when to send it again, how long it was waited for)
        self._in_flight: dict[tuple[int, int], tuple[float, float]] = {}
        # (when, sequence) of this boot's records while they are fresh.
        self._recorded: deque[tuple[float, int]] = deque()

    def recorded(self, sequence: int) -> None:
        """A record of this boot is in the spool now."""
        self._recorded.append((time.monotonic(), sequence))

    def restart(self) -> None:
        """The boot has changed: what was recorded so far is of another one."""
        self._recorded.clear()

    def due(self) -> Iterator[Spooled]:
        """Records to send now, one after the other; say ``sent`` of each that went."""
        border = self._first_fresh()
        fresh = self._spool.waiting(self._size, start=border)
        backlog = self._spool.waiting(self._size, end=border)
        # What a full spool dropped will never be acknowledged; what has aged without an answer joins the backlog's end.
        keys = {(spooled.boot, spooled.sequence) for spooled in (*fresh, *backlog)}
        self._in_flight = {key: sent for key, sent in self._in_flight.items() if key in keys}
        for records, room in ((fresh, self._size), (backlog, self._size - self._kept_for_fresh)):
            for spooled in records:
                sent = self._in_flight.get((spooled.boot, spooled.sequence))
                if (time.monotonic() >= sent[0]) if sent else (len(self._in_flight) < room):
                    yield spooled

    def sent(self, spooled: Spooled) -> bool:
        """A record has gone; whether it had before, without an answer."""
        key = (spooled.boot, spooled.sequence)
        before = self._in_flight.get(key)
        wait_s = min(2 * before[1], RESEND_MAX_S) if before else self._resend_s
        self._in_flight[key] = (time.monotonic() + wait_s * random.uniform(0.75, 1.0), wait_s)
        return before is not None

    def answered(self, boot: int, sequence: int) -> None:
        """The centre has spoken about a record: it makes room for another."""
        self._in_flight.pop((boot, sequence), None)

    def _first_fresh(self) -> tuple[int, int]:
        """(boot, sequence) from which on records are fresh."""
        aged_s = time.monotonic() - FRESH_S
        while self._recorded and self._recorded[0][0] < aged_s:
            self._recorded.popleft()
        return (self._spool.boot, self._recorded[0][1]) if self._recorded else (self._spool.boot + 1, 0)
