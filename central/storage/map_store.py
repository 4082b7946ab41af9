"""Store maps with their provenance."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.storage.database import (
    NEWEST,
    NEWEST_FIRST,
    SUPERSEDED,
    StoreError,
    connect,
    reported,
    transaction,
)
from central.storage.map_codec import decode_map, encode_map
from central.storage.schema import CHECKED_US, DECODED_US, REFINED


@dataclass(frozen=True)
class StoredMap:
    """Decoded map: ``velocity_mps`` and ``uncertainty_mps``, float32 ``(nz, nx)``.

    ``provenance`` holds the devices received, model and decoder hashes, times in microseconds since 1970, wire bytes,
    software versions and the survey.
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
    """Map to store, ``(nz, nx)`` float32 in m/s, decoded from the records of ``key`` up to ``last_record``."""

    key: tuple[int, int, bytes]
    last_record: int
    partial: bool
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    provenance: dict[str, Any]


# Columns that ``stored_map`` reads.
MAP_COLUMNS = (
    "survey, event, model_hash, revision, last_record, partial, provenance, n_depth, n_width, velocity, "
    "uncertainty, checksum"
)
# Maps kept per event and model, besides refined ones and the newest that is a decoder's; each additional latent of an
# event makes another map.
MAX_REVISIONS = 16
# Maximum maps read at once per event; a store of schema version 1 may have thousands.
MAX_LISTED = 100


class DamagedMapError(StoreError):
    """The stored bytes of a map are damaged; ``survey``, ``event`` and ``revision`` name it as those of a map do."""

    def __init__(self, survey: int, event: int, revision: int, reason: str) -> None:
        super().__init__(
            f"survey {survey}, event {event}, revision {revision}: damaged on the disk ({reason}); "
            "see what else is with: epic doctor --full"
        )
        self.survey, self.event, self.revision = survey, event, revision


class Store:
    """Map store access of one thread."""

    def __init__(self, data_dir: Path, create: bool = False) -> None:
        self._database = connect(data_dir, create)

    def put(self, maps: Sequence[NewMap]) -> list[int]:
        """Commit maps in one transaction.

        Returns:
            Their revisions, from 1.

        Raises:
            StoreError: The commit failed; nothing is kept.
        """
        what = ", ".join(f"survey {survey}, event {event}" for survey, event, _ in (m.key for m in maps[:3]))
        with transaction(self._database, f"store: cannot keep {len(maps)} maps ({what})"):
            return [self._insert(entry) for entry in maps]

    def put_unless_newer(
        self,
        entry: NewMap,
        settle: Callable[[sqlite3.Connection, int], None] = lambda database, revision: None,
    ) -> int | None:
        """Commit a map that took long to make, unless the centre has stored a map of later records meanwhile.

        Args:
            settle: Called with the revision within the transaction; the map is not stored if it raises.

        Returns:
            Its revision, or None if nothing was stored.

        Raises:
            StoreError: The commit failed.
        """
        survey, event, _ = entry.key
        with transaction(self._database, f"store: cannot keep a map (survey {survey}, event {event})"):
            (through,) = self._database.execute(
                "SELECT coalesce(max(last_record), 0) FROM map WHERE survey = ? AND event = ?",
                (survey, event),
            ).fetchone()
            if through > entry.last_record:
                return None
            revision = self._insert(entry)
            settle(self._database, revision)
            return revision

    def _insert(self, entry: NewMap) -> int:
        (revision,) = self._database.execute(
            "SELECT coalesce(max(revision), 0) + 1 FROM map"
            " WHERE survey = ? AND event = ? AND model_hash = ?",
            entry.key,
        ).fetchone()
        row = (
            *entry.key,
            revision,
            entry.last_record,
            int(entry.partial),
            json.dumps(entry.provenance),
            *entry.velocity_mps.shape,
            encode_map(entry.velocity_mps),
            encode_map(entry.uncertainty_mps),
        )
        self._database.execute(
            f"INSERT INTO map ({MAP_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", (*row, _checksum(row))
        )
        if revision > MAX_REVISIONS:
            self._database.execute(
                "DELETE FROM map WHERE survey = ? AND event = ? AND model_hash = ? AND revision <= ?"
                f" AND {SUPERSEDED}",
                (*entry.key, revision - MAX_REVISIONS),
            )
        return revision

    def amend(self, stored: StoredMap, name: str, value: Any, flag: tuple[str, str] | None = None) -> None:
        """Add later findings to the provenance of a stored map.

        Args:
            stored: The map.
            name: Entry of the provenance to set.
            value: Its value, ready for JSON.
            flag: Kind and reason; replaces the map's flag of that kind. An empty reason removes it.

        Raises:
            StoreError: The map cannot be updated.
        """
        key = (stored.survey, stored.event, stored.model_hash, stored.revision)
        where = "survey = ? AND event = ? AND model_hash = ? AND revision = ?"
        with transaction(self._database, f"store: cannot amend event {stored.event}"):
            row = self._database.execute(f"SELECT {MAP_COLUMNS} FROM map WHERE {where}", key).fetchone()
            if row is None:
                raise StoreError(f"event {stored.event}, revision {stored.revision}: no longer in the store")
            content = {**stored_map(row).provenance, name: value}
            if flag:
                kind, reason = flag
                others = [one for one in content.pop("flags", []) if not one.startswith(f"{kind}:")]
                if found := [*others, *([f"{kind}: {reason}"] if reason else [])]:
                    content["flags"] = found
            provenance = json.dumps(content)
            checksum = row[-1] and _checksum((*row[:6], provenance, *row[7:-1]))
            self._database.execute(
                f"UPDATE map SET provenance = ?, checksum = ? WHERE {where}", (provenance, checksum, *key)
            )

    def newest(self, survey: int | None = None) -> Iterator[StoredMap]:
        """Yield the newest map of every event, in event order; reads one row at a time."""
        of_survey, values = ("", ()) if survey is None else (" AND survey = ?", (survey,))
        with reported("store: cannot be read"):
            rows = self._database.execute(
                f"SELECT {MAP_COLUMNS} FROM map WHERE {NEWEST}{of_survey} ORDER BY survey, event", values
            )
            for row in rows:
                yield stored_map(row)

    def recent(
        self, survey: int | None = None, last: int = -1, since_us: int = 0
    ) -> Iterator[StoredMap | DamagedMapError]:
        """Yield the newest maps of the ``last`` events, or of all, in order of decoding.

        Maps decoded before ``since_us`` are left out. Rows are read one at a time; a damaged map yields an error in its
        place.
        """
        # A refined map keeps the time of the map that it began with, and newer maps may lie before it: go on.
        which = f"{NEWEST} AND NOT ({REFINED} AND coalesce({DECODED_US} < ?, 0))"
        values: tuple[int, ...] = (since_us,)
        if survey is not None:
            which, values = f"{which} AND survey = ?", (since_us, survey)
        first = self.last_id() + 1 if last >= 0 or since_us else 0
        with reported("store: cannot be read"):
            if first:
                for id, decoded_us in self._database.execute(
                    f"SELECT rowid, {DECODED_US} FROM map WHERE {which} ORDER BY rowid DESC LIMIT ?",
                    (*values, last),
                ):
                    if decoded_us is not None and decoded_us < since_us:
                        break
                    first = id
            rows = self._database.execute(
                f"SELECT {MAP_COLUMNS} FROM map WHERE rowid >= ? AND {which} ORDER BY rowid",
                (first, *values),
            )
            for row in rows:
                yield read_map(row)

    def get(self, event: int, survey: int | None = None) -> StoredMap:
        """Return the newest map of an event.

        Raises:
            DamagedMapError: The map is damaged.
            StoreError: The event has no map, or several surveys have this event.
        """
        return self._of_event(event, survey, f" AND {NEWEST}")[0]

    def revisions(self, event: int, survey: int | None = None) -> list[StoredMap]:
        """Return the intact ones of the newest ``MAX_LISTED`` maps of an event, newest first, at least one.

        Raises the errors of ``get``; that of the newest map if all are damaged.
        """
        return self._of_event(event, survey, f" ORDER BY {NEWEST_FIRST} LIMIT {MAX_LISTED}")

    def newest_decoded(self, survey: int, event: int) -> StoredMap | None:
        """Return the newest map of an event that is a decoder's, or None if all are refined.

        Raises:
            DamagedMapError: That map is damaged.
        """
        with reported("store: cannot be read"):
            row = self._database.execute(
                f"SELECT {MAP_COLUMNS} FROM map WHERE survey = ? AND event = ? AND NOT {REFINED}"
                f" ORDER BY {NEWEST_FIRST} LIMIT 1",
                (survey, event),
            ).fetchone()
        return row and stored_map(row)

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
        intact = [one for one in map(read_map, rows) if isinstance(one, StoredMap)]
        return intact or [stored_map(rows[0])]

    def _held(self, survey: int | None) -> str:
        """Describe the events that do exist, for an error message. Counts all events, so only for the error case."""
        with reported("store: cannot be read"):
            count, low, high = self._database.execute(
                "SELECT count(DISTINCT event), min(event), max(event) FROM map WHERE ?1 IS NULL OR survey = ?1",
                (survey,),
            ).fetchone()
        where = "the store" if survey is None else f"survey {survey} of the store"
        return f"{where}, which holds {f'{count} events from {low} to {high}' if count else 'no event yet'}"

    def last_id(self) -> int:
        """Return the id of the last stored map, or 0 if there is none."""
        with reported("store: cannot be read"):
            return self._database.execute("SELECT coalesce(max(rowid), 0) FROM map").fetchone()[0]

    def newest_unchecked(
        self, after: int, through: int, survey: int | None = None, without: Collection[bytes] = ()
    ) -> int | None:
        """Return the highest id in ``after + 1 .. through`` of an unchecked map that is its event's newest.

        Maps of the models ``without`` are left out. Returns None if there is no such map.
        """
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
        """Return the map with this id.

        Raises:
            DamagedMapError: The map is damaged.
            StoreError: There is no such map.
        """
        with reported("store: cannot be read"):
            row = self._database.execute(f"SELECT {MAP_COLUMNS} FROM map WHERE rowid = ?", (id,)).fetchone()
        if row is None:
            raise StoreError(f"map {id}: no longer in the store")
        return stored_map(row)

    def decoded_through(self, stored: StoredMap) -> int:
        """Return the id of the last record used for this map."""
        with reported("store: cannot be read"):
            return self._database.execute(
                "SELECT last_record FROM map WHERE survey = ? AND event = ? AND model_hash = ? AND revision = ?",
                (stored.survey, stored.event, stored.model_hash, stored.revision),
            ).fetchone()[0]

    def emitted_through(self, key: tuple[int, int, bytes]) -> int:
        """Return the id of the last record used for any map of this event, or 0 without a map."""
        with reported("store: cannot be read"):
            return self._database.execute(
                "SELECT coalesce(max(last_record), 0) FROM map"
                " WHERE survey = ? AND event = ? AND model_hash = ?",
                key,
            ).fetchone()[0]

    def close(self) -> None:
        self._database.close()


def stored_map(row: tuple) -> StoredMap:
    """Convert a row of ``MAP_COLUMNS`` to a map.

    Raises:
        DamagedMapError: The row is damaged.
    """
    survey, event, model_hash, revision, _, partial, text, nz, nx, *blobs, checksum = row
    try:
        if checksum is not None and checksum != _checksum(row[:-1]):
            raise ValueError("its checksum does not fit")
        provenance = json.loads(text)
        if not isinstance(provenance, dict):
            raise ValueError("its provenance is not an object")
        if checksum is None:
            # Rows of schema version 1.
            velocity, uncertainty = (np.frombuffer(blob, np.float32).reshape(nz, nx) for blob in blobs)
        else:
            velocity, uncertainty = (decode_map(blob, (nz, nx)) for blob in blobs)
    except (ValueError, TypeError) as error:
        raise DamagedMapError(survey, event, revision, str(error)) from None
    return StoredMap(survey, event, model_hash, revision, bool(partial), provenance, velocity, uncertainty)


def read_map(row: tuple) -> StoredMap | DamagedMapError:
    """Convert a row of ``MAP_COLUMNS`` to a map, or to the error if it is damaged."""
    try:
        return stored_map(row)
    except DamagedMapError as error:
        return error


def damaged_maps(database: sqlite3.Connection) -> Iterator[str]:
    """Yield the error of each damaged map; reads the whole store."""
    with reported("store: cannot be read"):
        for row in database.execute(f"SELECT {MAP_COLUMNS} FROM map"):
            if isinstance(found := read_map(row), DamagedMapError):
                yield str(found)


def _checksum(values: Sequence) -> int:
    """Return the CRC-32 of all map columns except the last."""
    *fields, velocity, uncertainty = values
    return zlib.crc32(uncertainty, zlib.crc32(velocity, zlib.crc32(repr(fields).encode())))
