"""Maps with where they come from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.storage.database import (
    CHECKED_US,
    NEWEST,
    NEWEST_FIRST,
    StoreError,
    connect,
    reported,
    transaction,
)


@dataclass(frozen=True)
class StoredMap:
    """A decoded map: ``velocity_mps``, ``uncertainty_mps`` float32 ``(nz, nx)``.

    ``provenance`` says which devices were heard, model and decoder hash, times in microseconds since
    1970, wire bytes, software versions, and the survey.
    """

    survey: int
    event: int
    model_hash: bytes
    revision: int
    partial: bool
    provenance: dict[str, Any]
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray


@dataclass(frozen=True)
class NewMap:
    """A map to keep, ``(nz, nx)`` float32 in m/s, drawn from the records of ``key`` up to ``last_record``."""

    key: tuple[int, int, bytes]
    last_record: int
    partial: bool
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    provenance: dict[str, Any]


# What ``stored_map`` makes a map of.
MAP_COLUMNS = (
    "survey, event, model_hash, revision, partial, provenance, n_depth, n_width, velocity, uncertainty"
)


class Store:
    """One thread's view of the maps."""

    def __init__(self, data_dir: Path, create: bool = False) -> None:
        self._database = connect(data_dir, create)

    def put(self, maps: Sequence[NewMap]) -> list[int]:
        """Commit maps in one transaction; returns their revisions (from 1).

        Raises ``StoreError`` with nothing kept.
        """
        what = ", ".join(f"survey {survey}, event {event}" for survey, event, _ in (m.key for m in maps[:3]))
        with transaction(self._database, f"store: cannot keep {len(maps)} maps ({what})"):
            return [self._insert(entry) for entry in maps]

    def put_unless_newer(self, entry: NewMap) -> int | None:
        """Commit a map that took long to make; returns its revision, None where the centre has drawn one from later
        records meanwhile: that one stays the newest, and nothing is kept. Raises ``StoreError``."""
        survey, event, _ = entry.key
        with transaction(self._database, f"store: cannot keep a map (survey {survey}, event {event})"):
            (through,) = self._database.execute(
                "SELECT coalesce(max(last_record), 0) FROM map WHERE survey = ? AND event = ?",
                (survey, event),
            ).fetchone()
            return None if through > entry.last_record else self._insert(entry)

    def _insert(self, entry: NewMap) -> int:
        (revision,) = self._database.execute(
            "SELECT coalesce(max(revision), 0) + 1 FROM map"
            " WHERE survey = ? AND event = ? AND model_hash = ?",
            entry.key,
        ).fetchone()
        self._database.execute(
            "INSERT INTO map VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                *entry.key,
                revision,
                entry.last_record,
                entry.partial,
                json.dumps(entry.provenance),
                *entry.velocity_mps.shape,
                np.ascontiguousarray(entry.velocity_mps, np.float32).tobytes(),
                np.ascontiguousarray(entry.uncertainty_mps, np.float32).tobytes(),
            ),
        )
        return revision

    def amend(self, stored: StoredMap, name: str, value: Any) -> None:
        """Add to the provenance of a map that is there what was found out later. Raises ``StoreError``."""
        key = (stored.survey, stored.event, stored.model_hash, stored.revision)
        where = "survey = ? AND event = ? AND model_hash = ? AND revision = ?"
        with transaction(self._database, f"store: cannot amend event {stored.event}"):
            (text,) = self._database.execute(f"SELECT provenance FROM map WHERE {where}", key).fetchone()
            amended = json.dumps({**json.loads(text), name: value})
            self._database.execute(f"UPDATE map SET provenance = ? WHERE {where}", (amended, *key))

    def newest(self, survey: int | None = None) -> Iterator[StoredMap]:
        """The newest map of every event, in order of event; read as they are asked for."""
        of_survey, values = ("", ()) if survey is None else (" AND survey = ?", (survey,))
        with reported("store: cannot be read"):
            rows = self._database.execute(
                f"SELECT {MAP_COLUMNS} FROM map WHERE {NEWEST}{of_survey} ORDER BY survey, event", values
            )
            for row in rows:
                yield stored_map(row)

    def get(self, event: int, survey: int | None = None) -> StoredMap:
        """The newest map of an event. Raises ``StoreError`` when there is none, or more than one survey's."""
        return self._of_event(event, survey, f" AND {NEWEST}")[0]

    def revisions(self, event: int, survey: int | None = None) -> list[StoredMap]:
        """Every map of an event, the newest first, at least one. Raises ``StoreError`` as ``get`` does."""
        return self._of_event(event, survey, f" ORDER BY {NEWEST_FIRST}")

    def _of_event(self, event: int, survey: int | None, which: str) -> list[StoredMap]:
        of_survey, values = ("", ()) if survey is None else (" AND survey = ?", (survey,))
        with reported("store: cannot be read"):
            rows = self._database.execute(
                f"SELECT {MAP_COLUMNS} FROM map WHERE event = ?{of_survey}{which}", (event, *values)
            ).fetchall()
        if not rows:
            raise StoreError(f"event {event}: not in {self._held(survey)}")
        if len({row[0] for row in rows}) > 1:
            raise StoreError(
                f"event {event}: in surveys {sorted({row[0] for row in rows})}; name one with --survey"
            )
        return [stored_map(row) for row in rows]

    def _held(self, survey: int | None) -> str:
        """What there is instead. It counts all events: only for who asked for one that is not there."""
        with reported("store: cannot be read"):
            count, low, high = self._database.execute(
                "SELECT count(DISTINCT event), min(event), max(event) FROM map WHERE ?1 IS NULL OR survey = ?1",
                (survey,),
            ).fetchone()
        where = "the store" if survey is None else f"survey {survey} of the store"
        return f"{where}, which holds {f'{count} events from {low} to {high}' if count else 'no event yet'}"

    def last_id(self) -> int:
        """Id of the map that was drawn last; 0 before the first."""
        with reported("store: cannot be read"):
            return self._database.execute("SELECT coalesce(max(rowid), 0) FROM map").fetchone()[0]

    def newest_unchecked(
        self, after: int, through: int, survey: int | None = None, without: Collection[bytes] = ()
    ) -> int | None:
        """The highest id of ``after + 1 .. through`` whose map is its event's newest and was not held against the
        waves yet; none of the models ``without``. None where there is no such map."""
        models = ",".join("?" * len(without))
        with reported("store: cannot be read"):
            row = self._database.execute(
                f"SELECT rowid FROM map WHERE {CHECKED_US} IS NULL AND rowid > ? AND rowid <= ?"
                f" AND coalesce(survey = ?, 1) AND model_hash NOT IN ({models}) AND {NEWEST}"
                " ORDER BY rowid DESC LIMIT 1",
                (after, through, survey, *without),
            ).fetchone()
        return row and row[0]

    def by_id(self, id: int) -> StoredMap:
        """The map with this id. Raises ``StoreError`` when there is none."""
        with reported("store: cannot be read"):
            row = self._database.execute(f"SELECT {MAP_COLUMNS} FROM map WHERE rowid = ?", (id,)).fetchone()
        if row is None:
            raise StoreError(f"map {id}: not in the store any more")
        return stored_map(row)

    def drawn_through(self, stored: StoredMap) -> int:
        """Id of the last record that this map was drawn from."""
        with reported("store: cannot be read"):
            return self._database.execute(
                "SELECT last_record FROM map WHERE survey = ? AND event = ? AND model_hash = ? AND revision = ?",
                (stored.survey, stored.event, stored.model_hash, stored.revision),
            ).fetchone()[0]

    def emitted_through(self, key: tuple[int, int, bytes]) -> int:
        """Id of the last record that a map of this event was drawn from; 0 without a map."""
        with reported("store: cannot be read"):
            return self._database.execute(
                "SELECT coalesce(max(last_record), 0) FROM map"
                " WHERE survey = ? AND event = ? AND model_hash = ?",
                key,
            ).fetchone()[0]

    def close(self) -> None:
        self._database.close()


def stored_map(row: tuple) -> StoredMap:
    """The map of a row of ``MAP_COLUMNS``."""
    survey, event, model_hash, revision, partial, provenance, nz, nx, velocity, uncertainty = row
    return StoredMap(
        survey,
        event,
        model_hash,
        revision,
        bool(partial),
        json.loads(provenance),
        np.frombuffer(velocity, np.float32).reshape(nz, nx),
        np.frombuffer(uncertainty, np.float32).reshape(nz, nx),
    )
