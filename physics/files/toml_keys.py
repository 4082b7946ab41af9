"""Report unknown keys of a TOML file with their line and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def line_of(text: str, word: str) -> str:
    """Return ``line N: `` of the first line that begins with the key or section ``word``; empty if there is none."""
    found = re.search(rf"^\s*\[*\s*[\"']?{re.escape(word)}(?![\w-])", text, re.MULTILINE)
    return f"line {text.count(chr(10), 0, found.end()) + 1}: " if found else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'KEY'? `` for the known key most like ``word``; empty if none is like it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""
