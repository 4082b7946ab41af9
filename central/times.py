"""Convert record times to dates, and check that the clock is set."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from central.errors import CentralError

# Earliest plausible time; a machine without a clock battery starts before it.
EARLIEST_YEAR = 2026

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Last whole microsecond of the year 9999, the maximum of a date.
LAST_US = 253_402_300_799_999_999


class ClockError(CentralError, RuntimeError):
    """The clock was never set."""


def check_clock() -> None:
    """Raise ``ClockError`` if the clock is implausible: devices without a clock take the centre's time."""
    now = time.gmtime()
    if now.tm_year < EARLIEST_YEAR:
        said = time.strftime("%Y-%m-%d %H:%M:%S UTC", now)
        raise ClockError(f"clock: {said}: expected {EARLIEST_YEAR} or later; set it, or start a time service")


def utc(time_us: int) -> datetime:
    """Convert ``time_us``, microseconds since 1970, to a date; later times are clipped to the maximum.

    Uses integers: floating point would round the last microseconds of 9999 up to a year that no date can hold.
    """
    return _EPOCH + timedelta(microseconds=min(max(time_us, 0), LAST_US))
