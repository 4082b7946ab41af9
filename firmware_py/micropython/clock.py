"""What time it is: the board's clock if it was set, else the centre's, as it was last heard."""

import time

# MicroPython counts from 1970 or from 2000, as the port has it.
EPOCH_S = 946_684_800 if time.gmtime(0)[0] == 2000 else 0
# A board's clock that says less was not set since the power came on.
SET_S = 1_735_689_600


class Clock:
    """Microseconds since 1970; 0 while neither the board nor the centre has told."""

    def __init__(self):
        self._heard_us = 0
        self._heard_ms = 0

    def set_s(self):
        """Seconds since 1970 of the board's own clock; 0 when it is not set."""
        now_s = int(time.time()) + EPOCH_S
        return now_s if now_s > SET_S else 0

    def now_us(self):
        own_s = self.set_s()
        if own_s:
            return time.time_ns() // 1000 + EPOCH_S * 1_000_000
        if not self._heard_us:
            return 0
        # Moved along whenever somebody asks, as health does once a day at least: ticks_ms comes round, and the
        # centre may be away for longer.
        now_ms = time.ticks_ms()
        self._heard_us += 1000 * time.ticks_diff(now_ms, self._heard_ms)
        self._heard_ms = now_ms
        return self._heard_us

    def heard(self, centre_us):
        """The centre says what time it is."""
        self._heard_us = centre_us
        self._heard_ms = time.ticks_ms()
