"""Parse times as people and loggers write them, to nanoseconds since 1970."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

# Plausible years; any other year indicates a wrong unit.
YEARS = (1980, 2100)
NS = 1_000_000_000

_NUMBER = re.compile(r"[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?")
_ORDINAL = re.compile(r"(\d{4})-?(\d{3})(?:[T ](.*))?")
_FRACTION = re.compile(r"[.,](\d+)")


def parse_time_ns(text: str) -> int:
    """Read a time: ISO 8601 (calendar or day of the year, UTC unless it says otherwise) or seconds since 1970.

    Args:
        text: such as ``2026-11-25T10:00:05.000Z``, ``2026-329T10:00:05``, ``2026/11/25 10:00:05`` or ``1795600805.25``.

    Returns:
        Nanoseconds since 1970.

    Raises:
        ValueError: it is none of these, or its year is not plausible.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text) and not _is_compact_date(text):
        try:
            nanoseconds = int(Decimal(text.replace(",", ".")) * NS)
            moment = datetime.fromtimestamp(nanoseconds // NS, UTC)
        except (InvalidOperation, OverflowError, OSError, ValueError):
            raise ValueError(f"expected seconds since 1970, got {text!r}") from None
    else:
        moment, fraction_ns = _parse_iso(text)
        nanoseconds = (
            int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)) * NS + fraction_ns
        )
    if not YEARS[0] <= moment.year < YEARS[1]:
        raise ValueError(
            f"expected a time in ISO 8601 or seconds since 1970, got {text!r}, which is in the year {moment.year}"
        )
    return nanoseconds


def format_time(nanoseconds: int) -> str:
    """Write nanoseconds since 1970 as ISO 8601, without trailing zeros."""
    moment = datetime.fromtimestamp(nanoseconds // NS, UTC)
    fraction = f".{nanoseconds % NS:09d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _is_compact_date(text: str) -> bool:
    """Return True for a date YYYYMMDD; seconds since 1970 have nine or ten digits."""
    return len(text) == 8 and text.isdigit()


def _parse_iso(text: str) -> tuple[datetime, int]:
    """Parse an ISO time to whole seconds in UTC and the nanoseconds after them."""
    tidy = text.replace("/", "-")
    if ordinal := _ORDINAL.fullmatch(tidy):
        year, day, clock = ordinal.groups()
        days = 366 if calendar.isleap(int(year)) else 365
        if not 1 <= int(day) <= days or not int(year):
            raise ValueError(f"expected a day of the year from 1 to {days}, got {text!r}")
        date = datetime(int(year), 1, 1) + timedelta(days=int(day) - 1)
        tidy = f"{date:%Y-%m-%d}T{clock or '00:00:00'}"
    fraction_ns = 0
    if found := _FRACTION.search(tidy):
        fraction_ns = int(found[1][:9].ljust(9, "0"))
        tidy = tidy[: found.start()] + tidy[found.end() :]
    try:
        moment = datetime.fromisoformat(tidy)
    except ValueError:
        raise ValueError(f"expected a time in ISO 8601 or seconds since 1970, got {text!r}") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment, fraction_ns
