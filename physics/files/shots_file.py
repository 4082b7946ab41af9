"""Read the shots' file: a line ``event,source,time`` for each shot. It may grow while it is read.

Files of spreadsheets and loggers are accepted: a byte order mark, UTF-16, commas, semicolons or tabs, a header in any
capitals with further columns, sources counted from 0 or from 1, times in ISO 8601 or in seconds since 1970, and a last
line without newline. Unreadable lines are reported and skipped.
"""

from __future__ import annotations

import codecs
import csv
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from physics.files.field_files import FieldFileError
from physics.files.times import parse_time_ns

COLUMNS = ("event", "source", "time")
# A last line without newline counts as complete after this many seconds without a change.
SETTLED_S = 1.0
MAX_EVENT = 2**32 - 1


@dataclass
class ShotsFile:
    """Events of a shots' file, read again whenever the file has changed.

    Args:
        path: The file.
        n_sources: Shots of one event.
        notify: Called once with each complaint.
    """

    path: Path
    n_sources: int
    notify: Callable[[str], None]
    # Shot times of each complete event, ns since 1970, in the order of the sources; keys are event numbers.
    complete: dict[int, tuple[int, ...]] = field(default_factory=dict)
    # Sources that an event lacks, by event number.
    missing: dict[int, list[int]] = field(default_factory=dict)
    _seen: tuple[float, int] | None = None
    _tail: str = ""
    _tail_at: float = 0.0
    _told: set[str] = field(default_factory=set)

    def read(self) -> None:
        """Read added lines. Raises ``FieldFileError`` if the file has never been readable."""
        try:
            stat = self.path.stat()
            if (stat.st_mtime, stat.st_size) == self._seen and not self._tail:
                return
            text = _decode(self.path.read_bytes())
        except OSError as error:
            said = f"{self.path}: cannot be read ({error}); expected lines event,source,time"
            if self._seen is None:
                raise FieldFileError(said) from None
            self._tell(said)
            return
        self._seen = (stat.st_mtime, stat.st_size)
        self._parse(self._finished_lines(text))

    def _finished_lines(self, text: str) -> list[str]:
        """Return the lines of the file, without a last line that may be incomplete."""
        lines = text.splitlines()
        tail = "" if text.endswith(("\n", "\r")) or not lines else lines[-1]
        if tail != self._tail:
            self._tail, self._tail_at = tail, time.monotonic()
        if not tail:
            return lines
        if time.monotonic() - self._tail_at < SETTLED_S:
            return lines[:-1]
        self._tail = ""
        return lines

    def _parse(self, lines: list[str]) -> None:
        columns: tuple[int, ...] = (0, 1, 2)
        shots: dict[int, dict[int, int]] = {}
        for number, line in enumerate(lines, start=1):
            parts = _split(line)
            if not any(parts) or parts[0].startswith("#"):
                continue
            names = [part.lower() for part in parts]
            if set(COLUMNS) <= set(names):
                columns = tuple(names.index(name) for name in COLUMNS)
                continue
            try:
                event, source, shot = _read_line(parts, columns, self.n_sources)
            except ValueError as error:
                self._tell(f"{self.path}: line {number} is left out: {error}")
                continue
            of_event = shots.setdefault(event, {})
            if of_event.get(source, shot) != shot:
                self._tell(
                    f"{self.path}: line {number} gives event {event} source {source} another time; the last one "
                    "counts"
                )
            of_event[source] = shot
        self._gather(shots)

    def _gather(self, shots: dict[int, dict[int, int]]) -> None:
        used = {source for of_event in shots.values() for source in of_event}
        first = 1 if self.n_sources in used and 0 not in used else 0
        if first:
            self._tell(f"{self.path}: sources are counted from 1")
        elif self.n_sources in used:
            self._tell(
                f"{self.path}: expected sources 0 to {self.n_sources - 1}, got {self.n_sources} as well as 0; "
                f"lines of source {self.n_sources} are left out"
            )
        wanted = range(first, self.n_sources + first)
        self.complete, self.missing = {}, {}
        for event, of_event in shots.items():
            if lacking := [source for source in wanted if source not in of_event]:
                self.missing[event] = lacking
            else:
                self.complete[event] = tuple(of_event[source] for source in wanted)

    def _tell(self, said: str) -> None:
        if said not in self._told:
            self._told.add(said)
            self.notify(said)


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    # Only notes hold other letters; in an old code page they are unreadable, the numbers are not.
    return content.decode("utf-8-sig", "replace")


def _split(line: str) -> list[str]:
    """Split a line at the first of its comma, semicolon or tab; a later one belongs to a number or a note."""
    found = re.search(r"[,;\t]", line)
    try:
        parts = next(csv.reader([line], delimiter=found[0] if found else ","), [])
    except csv.Error as error:
        return [f"({error})"]
    return [part.strip() for part in parts] or [""]


def _read_line(parts: list[str], columns: tuple[int, ...], n_sources: int) -> tuple[int, int, int]:
    if len(parts) <= max(columns):
        raise ValueError(f"expected event,source,time, got {','.join(parts)!r}")
    event, source, shot = (parts[column] for column in columns)
    if not (event.isascii() and event.isdigit() and int(event) <= MAX_EVENT):
        raise ValueError(f"expected an event's number, got {event!r}")
    if not (source.isascii() and source.isdigit() and int(source) <= n_sources):
        raise ValueError(f"expected a source, 0 to {n_sources - 1}, got {source!r}")
    return int(event), int(source), parse_time_ns(shot)
