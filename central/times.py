"""Convert record times to dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Last whole microsecond of the year 9999, the maximum of a date.
LAST_US = 253_402_300_799_999_999


def utc(time_us: int) -> datetime:
    """Convert ``time_us``, microseconds since 1970, to a date; later times are clipped to the maximum.

    Uses integers: floating point would round the last microseconds of 9999 up to a year that no date can hold.
    """
    return _EPOCH + timedelta(microseconds=min(max(time_us, 0), LAST_US))
