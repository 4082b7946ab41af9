"""Delete old events so that the store stays bounded: ``[retention]``, off by default.

Events are deleted by age, by number and on low disk space, oldest first, with their maps, records, recordings and
pictures. Events are kept if they are flagged, refined or in the queue of refinements. On low disk space, superseded
maps are deleted first, then pictures, then whole events; ``epic central export --format png`` draws a deleted picture
again. Transactions are short, since the receiver uses the same file.

An event waits until the numbers of its records are known for good (``central.fleet.gaps``). The centre thus tells
deleted records from lost ones, and does not store a deleted record again.
"""

from __future__ import annotations

import heapq
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from central.config import RetentionSection
from central.fleet.gaps import cut_from_gap
from central.recordings.given import given_path
from central.storage.database import NEWEST, SUPERSEDED, StoreError, connect, reported, transaction
from central.storage.schema import DECODED_US, FLAGGED, REFINED
from firmware_py.runtime.log import Log, now_us

EVERY_S = 60.0
# Pause between transactions, seconds; lets the receiver write.
PAUSE_S = 0.02
BATCH_EVENTS, BATCH_MAPS, BATCH_RECORDS, BATCH_PICTURES = 20, 20, 500, 100
# Pictures sorted by age at once; bounds the memory, whatever the folder holds.
MAX_LISTED = 10_000
DAY_US = 86_400_000_000
# Folder of the pictures.
PICTURES = "pictures"

# Events whose queued refinement has not ended.
_QUEUED = "SELECT survey, event FROM refinement_job WHERE state IN ('waiting', 'running')"
# True if an event has a record whose number is not in the memory of numbers yet. CROSS JOIN: the event's records first.
_UNSCANNED = (
    "EXISTS (SELECT 1 FROM record CROSS JOIN device_boot USING (survey, device, boot)"
    " WHERE record.survey = {survey} AND record.event = {event} AND record.sequence > device_boot.scanned)"
)
# The last map and the last record stay, so that SQLite does not reuse their ids.
_OLDEST = f"""
SELECT rowid, survey, event FROM map WHERE rowid > ? AND rowid < (SELECT max(rowid) FROM map) AND {NEWEST}
    AND NOT {FLAGGED} AND NOT EXISTS (SELECT 1 FROM map AS refined WHERE refined.survey = map.survey
    AND refined.event = map.event AND {REFINED.replace("provenance", "refined.provenance")})
    AND (survey, event) NOT IN ({_QUEUED}) AND NOT {_UNSCANNED.format(survey="map.survey", event="map.event")}
    AND NOT EXISTS (SELECT 1 FROM record WHERE record.survey = map.survey AND record.event = map.event
    AND record.id = (SELECT max(id) FROM record)) AND coalesce({DECODED_US} < ?, 0) ORDER BY rowid LIMIT ?
"""
# Time of the newest map of a decoder; a refined map has the time of its original.
_NEWEST_US = f"""
SELECT {DECODED_US} AS decoded_us FROM map WHERE typeof(decoded_us) = 'integer' AND NOT {REFINED}
    ORDER BY rowid DESC LIMIT 1
"""
# Number of events that ``max_events`` limits: all but those that stay. A refined map has an earlier revision; few
# provenances are read that way.
_COUNT = f"""
SELECT (SELECT count(*) FROM (SELECT DISTINCT survey, event FROM map)) - (SELECT count(*) FROM (
    SELECT survey, event FROM map WHERE {FLAGGED} = 1 AND {NEWEST}
    UNION SELECT survey, event FROM map WHERE rowid IN (SELECT rowid FROM map WHERE revision > 1) AND {REFINED}
    UNION {_QUEUED}))
"""


def picture_path(data_dir: Path, survey: int, event: int) -> Path:
    """Return the path of the picture of an event's map."""
    return data_dir / PICTURES / f"survey{survey}-event{event:06d}.png"


class Retention:
    """Retention policy at work: ``watch`` needs a thread; ``prune`` runs once."""

    def __init__(self, data_dir: Path, section: RetentionSection, log: Log) -> None:
        self._data_dir = data_dir
        self._section = section
        self._log = log

    def watch(self, stopping: threading.Event) -> None:
        """Prune every ``EVERY_S`` until ``stopping`` is set; failures are retried."""
        while not stopping.wait(EVERY_S):
            try:
                self.prune(stopping)
            except StoreError as error:
                self._log.write("retention_failed", reason=str(error))

    def prune(self, stopping: threading.Event) -> tuple[int, int]:
        """Delete everything that is due.

        Returns:
            Numbers of deleted events and superseded maps.

        Raises:
            StoreError: A transaction failed.
        """
        events = maps = pictures = 0
        section = self._section
        with closing(connect(self._data_dir)) as database:
            if section.max_age_days is not None:
                before_us = self._age_from_us(database) - int(section.max_age_days * DAY_US)
                events += self._remove_events(database, stopping, before_us)
            if section.max_events is not None:
                surplus = self._count(database) - section.max_events
                events += self._remove_events(database, stopping, most=max(surplus, 0))
            if section.max_recordings_mib is not None:
                self._remove_recordings(database, section.max_recordings_mib << 20)
            if self._is_short(database):
                maps = self._remove_superseded(database, stopping)
                pictures = self._remove_pictures(database, stopping)
                while not stopping.is_set() and self._is_short(database):
                    if not (removed := self._remove_events(database, stopping, most=BATCH_EVENTS)):
                        self._log.write(
                            "retention_short", reason="only flagged, refined, queued and new events are left"
                        )
                        break
                    events += removed
        if events or maps or pictures:
            self._log.write("retention", events=events, superseded_maps=maps, pictures=pictures)
        return events, maps

    def _is_short(self, database: sqlite3.Connection) -> bool:
        """Return True if free space is below the limit; free pages within the file count as free space."""
        if self._section.min_free_mib is None:
            return False
        with reported("store: cannot be read"):
            (pages,) = database.execute("PRAGMA freelist_count").fetchone()
            (size,) = database.execute("PRAGMA page_size").fetchone()
        return shutil.disk_usage(self._data_dir).free + pages * size < self._section.min_free_mib << 20

    @staticmethod
    def _age_from_us(database: sqlite3.Connection) -> int:
        """Return the time from which age is measured: now, or the newest map's if that is earlier.

        A clock that jumps ahead must not delete fresh events.
        """
        with reported("store: cannot be read"):
            row = database.execute(_NEWEST_US).fetchone()
        return min(now_us(), row[0]) if row else now_us()

    @staticmethod
    def _count(database: sqlite3.Connection) -> int:
        with reported("store: cannot be read"):
            return database.execute(_COUNT).fetchone()[0]

    def _remove_events(
        self,
        database: sqlite3.Connection,
        stopping: threading.Event,
        before_us: int = 1 << 62,
        most: int | None = None,
    ) -> int:
        """Delete up to ``most`` of the oldest events decoded before ``before_us``, or all of them."""
        removed = after = 0
        while not stopping.is_set() and (most is None or removed < most):
            size = BATCH_EVENTS if most is None else min(BATCH_EVENTS, most - removed)
            with reported("store: cannot be read"):
                rows = database.execute(_OLDEST, (after, before_us, size)).fetchall()
            for id, survey, event in rows:
                removed += self._remove_event(database, stopping, survey, event)
                after = id
            if len(rows) < size:
                break
        return removed

    def _remove_event(
        self, database: sqlite3.Connection, stopping: threading.Event, survey: int, event: int
    ) -> bool:
        """Delete one event, records first: an event with records but no map would be decoded again.

        Returns:
            False if a record has arrived meanwhile. The event then waits, with its map.
        """
        left = BATCH_RECORDS
        while left == BATCH_RECORDS:
            with transaction(database, "retention: records cannot be removed"):
                rows = database.execute(
                    "SELECT id, device, boot, sequence, sequence > scanned FROM record"
                    " LEFT JOIN device_boot USING (survey, device, boot) WHERE survey = ? AND event = ? LIMIT ?",
                    (survey, event, BATCH_RECORDS),
                ).fetchall()
                if any(unscanned for *_, unscanned in rows):
                    return False
                for _, device, boot, sequence, _ in rows:
                    cut_from_gap(database, (survey, device, boot), sequence)
                database.executemany("DELETE FROM record WHERE id = ?", [row[:1] for row in rows])
                left = len(rows)
                if left < BATCH_RECORDS:
                    for table in ("recording_piece", "recording", "map"):
                        database.execute(
                            f"DELETE FROM {table} WHERE survey = ? AND event = ?", (survey, event)
                        )
            stopping.wait(PAUSE_S)
        for path in (picture_path, given_path):
            with suppress(OSError):
                os.unlink(path(self._data_dir, survey, event))
        return True

    def _remove_recordings(self, database: sqlite3.Connection, most_bytes: int) -> None:
        """Delete kept recordings, an event at a time and those fetched first, until they take ``most_bytes``.

        An event with an open request keeps its recordings, and so does one with a queued refinement.
        """
        with reported("store: cannot be read"):
            (kept_bytes,) = database.execute(
                "SELECT coalesce(sum(part_bytes), 0) FROM recording WHERE state = 'kept'"
            ).fetchone()
            events = database.execute(
                "SELECT survey, event, sum(part_bytes) FROM recording WHERE state = 'kept' AND (survey, event)"
                f" NOT IN (SELECT survey, event FROM recording WHERE state IN ('asked', 'coming') UNION {_QUEUED})"
                " GROUP BY survey, event ORDER BY min(changed_us)"
            ).fetchall()
        surplus_bytes = kept_bytes - most_bytes
        for survey, event, size in events:
            if surplus_bytes <= 0:
                break
            with transaction(database, "retention: recordings cannot be removed"):
                database.execute(
                    "DELETE FROM recording_piece WHERE survey = ?1 AND event = ?2 AND device IN"
                    " (SELECT device FROM recording WHERE survey = ?1 AND event = ?2 AND state = 'kept')",
                    (survey, event),
                )
                database.execute(
                    "DELETE FROM recording WHERE survey = ? AND event = ? AND state = 'kept'", (survey, event)
                )
            surplus_bytes -= size
            self._log.write("recordings_removed", survey=survey, event=event, bytes=size)

    def _remove_pictures(self, database: sqlite3.Connection, stopping: threading.Event) -> int:
        """Delete pictures, the oldest first, until enough is free; return their number. Each can be drawn again."""
        removed = 0
        paths: Iterator[str] = iter(())
        while not stopping.is_set() and self._is_short(database):
            batch = list(islice(paths, BATCH_PICTURES))
            if not batch:
                paths = iter(_oldest_files(self._data_dir / PICTURES))
                batch = list(islice(paths, BATCH_PICTURES))
            before = removed
            for path in batch:
                with suppress(OSError):
                    os.unlink(path)
                    removed += 1
            if removed == before:
                break
            stopping.wait(PAUSE_S)
        return removed

    def _remove_superseded(self, database: sqlite3.Connection, stopping: threading.Event) -> int:
        removed, after = 0, 0
        while not stopping.is_set() and self._is_short(database):
            with reported("store: cannot be read"):
                ids = database.execute(
                    f"SELECT rowid FROM map WHERE rowid > ? AND {SUPERSEDED} ORDER BY rowid LIMIT ?",
                    (after, BATCH_MAPS),
                ).fetchall()
            if not ids:
                break
            with transaction(database, "retention: maps cannot be removed"):
                database.executemany("DELETE FROM map WHERE rowid = ?", ids)
            removed, after = removed + len(ids), ids[-1][0]
            stopping.wait(PAUSE_S)
        return removed


def _oldest_files(folder: Path) -> list[str]:
    """Return up to ``MAX_LISTED`` pictures of a folder, the oldest first; none if it cannot be read."""
    return [path for _, path in heapq.nsmallest(MAX_LISTED, _dated_files(folder))]


def _dated_files(folder: Path) -> Iterator[tuple[int, str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # A file may go meanwhile.
            with suppress(OSError):
                if entry.name.endswith(".png") and entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_mtime_ns, entry.path
