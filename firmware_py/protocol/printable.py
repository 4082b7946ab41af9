"""Escape untrusted text before it is shown."""

from __future__ import annotations

import unicodedata

MAX_CHARACTERS = 600
# Unicode categories that control a terminal or mislead a reader: control, format (bidirectional overrides, zero width),
# surrogate, private use, unassigned, line and paragraph separators.
_HARMFUL = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def printable(text: str) -> str:
    """``text`` with every character that is not plainly visible as its escape, ``\\x1b`` or ``\\u202e``.

    At most ``MAX_CHARACTERS`` of it, then ``…``.
    """
    shown = "".join(_escape(c) if unicodedata.category(c) in _HARMFUL else c for c in text[:MAX_CHARACTERS])
    return shown + "…" if len(text) > MAX_CHARACTERS else shown


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
