"""Tell the time: from the board's clock if it is set, else from the centre's last answer."""

import time

# MicroPython's epoch is 1970 or 2000, depending on the port.
EPOCH_S = 946_684_800 if time.gmtime(0)[0] == 2000 else 0
# Age of the centre's last answer from which its clock is no longer relied on.
RECENT_MS = 600_000
# Earliest valid time; an earlier clock was not set since power-on.
SET_S = 1_735_689_600
# The clock numbers a start, and later times do not fit into a record's boot.
LAST_S = 0xFFFFFFFE


class Clock:
    """Clock in microseconds since 1970; 0 while neither the board nor the centre has set it."""

    def __init__(self):
        self._heard_us = 0
        self._heard_ms = 0
        self._age_ms = RECENT_MS

    def set_s(self):
        """Return the board's own clock in seconds since 1970, or 0 if it is not set."""
        now_s = int(time.time()) + EPOCH_S
        return now_s if SET_S < now_s <= LAST_S else 0

    def now_us(self):
        heard_us = self._advanced_us()
        return time.time_ns() // 1000 + EPOCH_S * 1_000_000 if self.set_s() else heard_us

    def centre_us(self):
        """Return the time by a recent answer of the centre, 0 without one."""
        now_us = self._advanced_us()
        return now_us if self._age_ms < RECENT_MS else 0

    def _advanced_us(self):
        """The centre's time, 0 while it has not been heard."""
        if not self._heard_us:
            return 0
        # Advance at every call (health calls at least daily): ticks_ms wraps around, and the centre may be away for
        # longer.
        now_ms = time.ticks_ms()
        passed_ms = time.ticks_diff(now_ms, self._heard_ms)
        self._heard_us += 1000 * passed_ms
        self._age_ms = min(self._age_ms + passed_ms, RECENT_MS)
        self._heard_ms = now_ms
        return self._heard_us

    def heard(self, centre_us):
        """Set the clock from the centre's time."""
        self._heard_us = centre_us
        self._heard_ms = time.ticks_ms()
        self._age_ms = 0
