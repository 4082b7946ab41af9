"""Unknown keys of a TOML file, told with their line and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any


def line_of(text: str, section: str, key: str) -> int | None:
    """Line of ``key`` within ``[section]`` or ``[[section]]``, or of the section's own header for an empty key.

    Args:
        text: the file's content.
        section: dotted name of the section, empty for the top of the file.
        key: name of the key, empty for the header.

    Returns:
        The number, from 1; None where the key is written in another way.
    """
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?", line):
            current = re.sub(r"[\s\"']", "", header[1])
            if not key and current == section:
                return number
        elif key and current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
    return None


def unknown_key(text: str, section: str, key: str, known: Iterable[str]) -> str:
    """One line about a key, or with an empty ``section`` a section or key of the file's top, that is not known.

    Returns:
        Where it stands, the nearest known one, and all known ones.
    """
    names = list(known)
    number = line_of(text, section, key) or line_of(text, f"{section}.{key}".strip("."), "")
    place = f"line {number}: " if number else ""
    where = f"[{section}] unknown key" if section else "unknown section or key"
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{place}{where} {key!r}; {hint}known are {', '.join(names)}"


def find_unknown(text: str, content: Mapping[str, Any], known: Mapping[str, Iterable[str]]) -> str | None:
    """The first unknown section or key of a file of ``known`` sections with their keys; None where there is none."""
    for section, values in content.items():
        if section not in known:
            return unknown_key(text, "", section, known)
        for table in values if isinstance(values, list) else [values]:
            for key in table if isinstance(table, Mapping) else ():
                if key not in known[section]:
                    return unknown_key(text, section, key, known[section])
    return None
