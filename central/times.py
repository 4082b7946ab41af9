"""Times from records as dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Last whole microsecond of the year 9999, the last that a date can hold.
LAST_US = 253_402_300_799_999_999


def utc(time_us: int) -> datetime:
    """``time_us``, microseconds since 1970, as a date; the last there is for a time beyond it.

    By whole numbers: floating point rounds the last microseconds of 9999 up to a year that no date can hold.
    """
    return _EPOCH + timedelta(microseconds=min(max(time_us, 0), LAST_US))
