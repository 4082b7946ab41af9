"""Stand-in for ``machine`` on stock MicroPython: the watchdog ends the process when it is not fed in time."""

import sys
import time


class WDT:
    def __init__(self, timeout):
        self._timeout_ms = timeout
        self._fed_ms = time.ticks_ms()

    def feed(self):
        now_ms = time.ticks_ms()
        if time.ticks_diff(now_ms, self._fed_ms) > self._timeout_ms:
            print("the watchdog has reset the board")
            sys.exit(3)
        self._fed_ms = now_ms


def reset():
    sys.exit(2)


PWRON_RESET, WDT_RESET = 1, 3


def reset_cause():
    """Power came on only where the file ``power-on`` says so."""
    try:
        open("power-on").close()
    except OSError:
        return WDT_RESET
    return PWRON_RESET
