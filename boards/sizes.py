"""Sizes of memory as people write them, with the unit never left out."""

from __future__ import annotations

import re

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?) (B|[KMG]i?B)")


def parse_size(text: object) -> int:
    """``"512 KiB"`` -> 524288. Raises ``ValueError`` unless it is a number, a space and a unit."""
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected a size such as '512 KiB', '32 MiB' or '8 MB', got {text!r}")
    size = float(match[1]) * _UNITS[match[2]]
    if size <= 0 or not size.is_integer():
        raise ValueError(f"expected a positive whole number of bytes, got {text!r}")
    return int(size)


def format_size(size_bytes: int) -> str:
    """524288 -> ``"512 KiB"``: the largest binary unit, one decimal unless it comes out even."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes >= _UNITS[unit]:
            value = size_bytes / _UNITS[unit]
            return f"{value:.0f} {unit}" if value.is_integer() else f"{value:.1f} {unit}"
    return f"{size_bytes} B"
