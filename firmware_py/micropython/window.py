"""Choose the next record to send: the newest one, then waiting ones, and repeats of unanswered ones.

At most ``window`` records besides the newest are unanswered. The first timeout is ``resend_ms``. It doubles with each
repeat, up to 30 s. A random part is subtracted so that devices do not all send at once when the centre returns.
"""

import random
import time
from array import array

RESEND_MAX_MS = 30_000


class Window:
    """Keeps in fixed arrays when each slot of ``spool`` was sent, and how often."""

    def __init__(self, spool, window, resend_ms):
        self._spool = spool
        self._window = window
        self._resend_ms = resend_ms
        self._tries = bytearray(spool.n)
        self._due_ms = array("i", [0] * spool.n)

    def recorded(self, slot):
        """A new record is in ``slot``."""
        self._tries[slot] = 0

    def due(self, now_ms):
        """The slot to send now; -1 for none."""
        spool = self._spool
        if not spool.waiting:
            return -1
        newest = (spool.oldest + spool.span - 1) % spool.n
        if spool.state[newest] and not self._tries[newest]:
            return newest
        on_the_way = 0
        found = -1
        for i in range(spool.span):
            slot = (spool.oldest + i) % spool.n
            if not spool.state[slot]:
                continue
            # A due time further ahead than any timeout is in the past: ticks_ms has wrapped around.
            if self._tries[slot] and 0 < time.ticks_diff(self._due_ms[slot], now_ms) <= RESEND_MAX_MS:
                on_the_way += 1
            elif found < 0:
                found = slot
        return found if on_the_way < self._window else -1

    def sent(self, slot, now_ms):
        """A record has gone."""
        wait_ms = self._resend_ms
        for _ in range(self._tries[slot]):
            wait_ms = min(2 * wait_ms, RESEND_MAX_MS)
        if self._tries[slot] < 255:
            self._tries[slot] += 1
        wait_ms -= (wait_ms * random.getrandbits(8)) >> 10
        self._due_ms[slot] = time.ticks_add(now_ms, wait_ms)
