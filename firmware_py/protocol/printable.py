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
    return _escaped(text[:MAX_CHARACTERS]) + "…" * (len(text) > MAX_CHARACTERS)


def printable_lines(text: str) -> str:
    """Escape ``text`` of any length in the same way, but keep its line feeds: a message with text of others in it."""
    return "\n".join(map(_escaped, text.split("\n")))


def _escaped(text: str) -> str:
    return "".join(_escape(c) if unicodedata.category(c) in _HARMFUL else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
