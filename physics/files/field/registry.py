"""Registry of the field formats."""

from __future__ import annotations

from pathlib import Path

from physics.files.field import miniseed, seg2, segy, su
from physics.files.field.traces import FieldFileError, FieldFormat

# Formats with a magic number first, because a SEG-Y text header can begin with anything.
FORMATS: tuple[FieldFormat, ...] = (seg2.FORMAT, miniseed.FORMAT, su.FORMAT, segy.FORMAT)
HEAD_BYTES = 1 << 20


def format_of(path: Path) -> FieldFormat:
    """Return the format of a file by its content, or by its suffix if no format matches. Raises ``FieldFileError``."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = path.stat().st_size
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise FieldFileError(f"{path}: {reason}; expected a field recording: {_known()}") from None
    suffix = path.suffix.lower()
    # If two formats match, as SU and SEG-Y may, the suffix decides.
    matching = [known for known in FORMATS if known.matches(head, size)]
    named = [known for known in FORMATS if suffix in known.suffixes]
    for known in (*(known for known in named if known in matching), *matching, *named):
        return known
    raise FieldFileError(
        f"{path}: expected {_known()}; got {suffix or 'no suffix'!r} and none of these by content"
    )


def _known() -> str:
    return ", ".join(f"{known.name} ({', '.join(known.suffixes)})" for known in FORMATS)
