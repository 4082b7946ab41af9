"""Choose the next records to send: fresh ones, then the backlog, and repeats of unanswered ones.

A record is fresh for ``FRESH_S``, the centre's default wait for an event's other devices. While a backlog drains, a
quarter of the window is reserved for fresh records, so that they never wait behind it. Within each group the oldest
goes first.
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
    """Send window of at most ``size`` unanswered records of ``spool``.

    The first timeout of a record is ``resend_s``. It doubles with each repeat, up to 30 s. A random part is subtracted
    so that devices do not all send at once when the centre returns.
    """

    def __init__(self, spool: Spool, size: int, resend_s: float) -> None:
        self._spool = spool
        self._size = size
        self._kept_for_fresh = size // 4
        self._resend_s = resend_s
        # (boot, sequence) -> (time of the next repeat, last timeout)
        self._in_flight: dict[tuple[int, int], tuple[float, float]] = {}
        # (time, sequence) of this boot's fresh records.
        self._recorded: deque[tuple[float, int]] = deque()

    def recorded(self, sequence: int) -> None:
        """Note that a record of this boot is in the spool."""
        self._recorded.append((time.monotonic(), sequence))

    def restart(self) -> None:
        """Handle a changed boot number: earlier records belong to another boot."""
        self._recorded.clear()

    def due(self) -> Iterator[Spooled]:
        """Yield the records to send now; call ``sent`` for each one that was sent."""
        border = self._first_fresh()
        fresh = self._spool.waiting(self._size, start=border)
        backlog = self._spool.waiting(self._size, end=border)
        # Records dropped from a full spool will never be acknowledged. Unanswered records that are no longer fresh join
        # the end of the backlog.
        keys = {(spooled.boot, spooled.sequence) for spooled in (*fresh, *backlog)}
        self._in_flight = {key: sent for key, sent in self._in_flight.items() if key in keys}
        for records, room in ((fresh, self._size), (backlog, self._size - self._kept_for_fresh)):
            for spooled in records:
                sent = self._in_flight.get((spooled.boot, spooled.sequence))
                if (time.monotonic() >= sent[0]) if sent else (len(self._in_flight) < room):
                    yield spooled

    def sent(self, spooled: Spooled) -> bool:
        """Note that a record was sent; return True if it is a repeat."""
        key = (spooled.boot, spooled.sequence)
        before = self._in_flight.get(key)
        wait_s = min(2 * before[1], RESEND_MAX_S) if before else self._resend_s
        self._in_flight[key] = (time.monotonic() + wait_s * random.uniform(0.75, 1.0), wait_s)
        return before is not None

    def answered(self, boot: int, sequence: int) -> None:
        """Free the record's place in the window: the centre acknowledged or refused it."""
        self._in_flight.pop((boot, sequence), None)

    def _first_fresh(self) -> tuple[int, int]:
        """Return the (boot, sequence) of the first fresh record."""
        aged_s = time.monotonic() - FRESH_S
        while self._recorded and self._recorded[0][0] < aged_s:
            self._recorded.popleft()
        return (self._spool.boot, self._recorded[0][1]) if self._recorded else (self._spool.boot + 1, 0)
