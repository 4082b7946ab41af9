"""Store received records before they are acknowledged; idempotent on (survey, device, boot, sequence)."""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from central.storage.database import StoreError, connect, reported, transaction
from firmware_py.protocol.packet import Record
from firmware_py.runtime.log import Log
from firmware_py.storage.sqlite_file import open_log

_LAST_ID = (1 << 63) - 1


@dataclass(frozen=True)
class JournalEntry:
    """Latent in the journal; ``id`` grows in order of arrival."""

    id: int
    survey: int
    event: int
    model_hash: bytes
    device: int
    boot: int
    sequence: int
    sample_time_us: int
    received_us: int
    wire_bytes: int
    payload: bytes

    @property
    def sampled_us(self) -> int:
        """Return the sample time, or the arrival time if the device had no clock yet."""
        return self.sample_time_us or self.received_us

    @property
    def key(self) -> tuple[int, int, bytes]:
        """Return the event's key (survey, event, model hash); latents of different models are never mixed."""
        return (self.survey, self.event, self.model_hash)

    @property
    def order(self) -> tuple[int, int]:
        """Return the record's position in its device's own order, independent of the order of delivery."""
        return (self.boot, self.sequence)


@dataclass(frozen=True)
class CommitResult:
    """Result of a group commit: ``new`` entries, and group indices of records in ``conflict``.

    A conflict has the number of a stored record but different content. Either two devices share a number, or one lost
    its counter. The journal keeps the stored record.
    """

    new: list[JournalEntry]
    conflicts: set[int]


_COUNT_IN_BOOT = """
INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us, model_hash, changed)
VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
    records = records + excluded.records,
    changed = max(changed, excluded.changed),
    sample_time_us = iif(excluded.highest > highest, excluded.sample_time_us, sample_time_us),
    received_us = iif(excluded.highest > highest, excluded.received_us, received_us),
    model_hash = iif(excluded.highest > highest, excluded.model_hash, model_hash),
    highest = max(highest, excluded.highest)
"""

_COLUMNS = (
    "id, survey, event, model_hash, device, boot, sequence, sample_time_us, received_us, wire_bytes, payload"
)
# Columns under the checksum besides the payload: all but the id.
_CHECKED = struct.Struct("<HI8sHIIQQI")
# Maximum latents read at once per event; a device with a stuck event number sends any number of them.
FEW = 256


class Journal:
    """Journal access of one thread."""

    def __init__(self, data_dir: Path, log: Log | None = None) -> None:
        """Open the journal. Damaged records are skipped and reported to ``log``."""
        self._database = connect(data_dir, create=True)
        # SQLite does not sync these commits; `_sync` does, so that other connections see them while the disk writes.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._wal = self._open_wal()
        # True if a sync is due. True at the start, because a killed process may have left commits without a sync.
        self._unsynced = True
        # Reason of a failed sync, or empty.
        self._sync_failed = ""
        self._log = log
        # Id of the last record of the latest read, intact or damaged; None if there was none.
        self.read_through: int | None = None

    def commit(
        self, records: Sequence[tuple[Record, int, int]], seen: Callable[[int], None] = lambda newest: None
    ) -> CommitResult:
        """Commit a group of records durably in one transaction.

        Records that are already stored are left unchanged. Those that retention has deleted are not stored again.

        Args:
            records: ``(record, received_us, wire_bytes)`` of each.
            seen: Called with the id of the newest new record once other connections can read it, before the sync. A
                power cut at that moment also loses what was committed after it, such as maps of these records.

        Raises:
            StoreError: The commit failed, for example on a full disk; nothing of the group is kept. After a failed
                sync all later commits fail, because a disk may forget what it could not write.
        """
        if self._sync_failed:
            raise StoreError(self._sync_failed)
        new: list[JournalEntry] = []
        conflicts: set[int] = set()
        with transaction(self._database, f"journal: cannot commit {len(records)} records"):
            scanned: dict[tuple[int, int, int], int] = {}
            for place, (record, received_us, wire_bytes) in enumerate(records):
                known = self._is_known(record, scanned)
                latent = None if known else self._insert(record, received_us, wire_bytes)
                if latent:
                    new.append(latent)
                elif not self._holds(record):
                    conflicts.add(place)
            self._count(new)
        if new:
            self._unsynced = True
            seen(new[-1].id)
        if self._unsynced:
            self._sync()
        return CommitResult(new, conflicts)

    def _open_wal(self) -> IO[bytes]:
        try:
            return open_log(self._database)
        except OSError as error:
            self._database.close()
            raise StoreError(
                f"{error.filename}: cannot be opened ({error.strerror}); expected a file that SQLite keeps while the "
                "centre runs"
            ) from None

    def _sync(self) -> None:
        """Return when all commits so far are on the disk."""
        try:
            os.fdatasync(self._wal.fileno())
        except OSError as error:
            self._sync_failed = (
                f"journal: the disk failed to keep {self._wal.name} ({error.strerror}); check the disk, then start "
                "the centre again"
            )
            raise StoreError(self._sync_failed) from None
        self._unsynced = False

    def _count(self, new: list[JournalEntry]) -> None:
        """Update the device counters: one write per group and boot, in the group's transaction, to keep it cheap."""
        counts: dict[tuple[int, int, int], tuple[int, JournalEntry]] = {}
        for latent in new:
            key = (latent.survey, latent.device, latent.boot)
            count, newest = counts.get(key, (0, latent))
            counts[key] = (count + 1, latent if latent.sequence > newest.sequence else newest)
        changed = new[-1].id if new else 0
        self._database.executemany(
            _COUNT_IN_BOOT,
            [
                (
                    *key,
                    count,
                    newest.sequence,
                    newest.sample_time_us,
                    newest.received_us,
                    newest.model_hash,
                    changed,
                )
                for key, (count, newest) in counts.items()
            ],
        )

    def _is_known(self, record: Record, scanned: dict[tuple[int, int, int], int]) -> bool:
        """Return True if the memory of numbers (``central.fleet.gaps``) has the record's number.

        ``scanned`` caches that column by boot for the group.
        """
        boot = (record.survey, record.device, record.boot)
        if boot not in scanned:
            row = self._database.execute(
                "SELECT scanned FROM device_boot WHERE survey = ? AND device = ? AND boot = ?", boot
            ).fetchone()
            scanned[boot] = row[0] if row else 0
        return 0 < record.sequence <= scanned[boot] and gap_of(self._database, boot, record.sequence) is None

    def _insert(self, record: Record, received_us: int, wire_bytes: int) -> JournalEntry | None:
        values = (
            record.survey,
            record.event,
            record.model_hash,
            record.device,
            record.boot,
            record.sequence,
            record.sample_time_us,
            received_us,
            wire_bytes,
            record.payload,
        )
        cursor = self._database.execute(
            f"INSERT OR IGNORE INTO record ({_COLUMNS}, checksum) VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?)",
            (*values, _checksum(values)),
        )
        return JournalEntry(cursor.lastrowid or 0, *values) if cursor.rowcount == 1 else None

    def _holds(self, record: Record) -> bool:
        """Return True if the record stored under this number is identical to this one, or was deleted."""
        kept = self._database.execute(
            "SELECT event, model_hash, payload FROM record"
            " WHERE survey = ? AND device = ? AND boot = ? AND sequence = ?",
            (record.survey, record.device, record.boot, record.sequence),
        ).fetchone()
        if kept is None:
            return True
        return kept == (record.event, record.model_hash, record.payload)

    def of_event(self, key: tuple[int, int, bytes]) -> list[JournalEntry]:
        """Return every latent of an event in order of arrival. Unbounded; for tests and accounting only."""
        return self._read("survey = ? AND event = ? AND model_hash = ?", key)

    def latents_of(
        self, key: tuple[int, int, bytes], n_devices: int, through: int | None = None
    ) -> list[JournalEntry]:
        """Return an event's latents in order of arrival, up to the id ``through`` if given.

        An event with more than ``FEW`` latents is reduced to the last arrivals and each device's newest latent.
        """
        of_event, last_id = "survey = ? AND event = ? AND model_hash = ? AND id <= ?", through or _LAST_ID
        few = max(FEW, 4 * n_devices)
        found = self._read(of_event, (*key, last_id), few + 1, "id DESC")
        if len(found) <= few:
            return found[::-1]
        for device in range(n_devices):
            found += self._read(
                "survey = ? AND event = ? AND model_hash = ? AND device = ? AND +id <= ?",
                (*key, device, last_id),
                1,
                "boot DESC, sequence DESC",
            )
        return sorted(set(found), key=lambda latent: latent.id)

    def newest(self) -> int:
        """Return the id of the newest latent, or 0 if there is none."""
        with reported("journal: cannot be read"):
            return self._database.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()[0]

    def after(self, read: int, most: int) -> list[JournalEntry]:
        """Return the first ``most`` latents after the id ``read``."""
        return self._read("id > ?", (read,), most)

    def undecoded(self, read: int = 0, most: int = -1) -> list[JournalEntry]:
        """Return latents newer than their event's last map: the backlog of a restart.

        It returns those after the id ``read``: the first ``most``, or all.
        """
        return self._read(
            "id > ? AND id > coalesce((SELECT max(last_record) FROM map AS m WHERE m.survey = record.survey"
            " AND m.event = record.event AND m.model_hash = record.model_hash), 0)",
            (read,),
            most,
        )

    def _read(self, condition: str, values: tuple, most: int = -1, order: str = "id") -> list[JournalEntry]:
        with reported("journal: cannot be read"):
            rows = self._database.execute(
                f"SELECT {_COLUMNS}, checksum FROM record WHERE {condition} ORDER BY {order} LIMIT ?",
                (*values, most),
            ).fetchall()
        self.read_through = rows[-1][0] if rows else None
        return [JournalEntry(*row[:-1]) for row in rows if self._is_whole(row)]

    def _is_whole(self, row: tuple) -> bool:
        """Return True if the checksum matches; records from before checksums have none and pass."""
        id, *values, checksum = row
        if checksum is None or checksum == _checksum(values):
            return True
        if self._log:
            self._log.write("record_damaged", id=id, survey=values[0], event=values[1], device=values[3])
        return False

    def close(self) -> None:
        self._database.close()
        self._wal.close()


def gap_of(
    database: sqlite3.Connection, boot: tuple[int, int, int], sequence: int
) -> tuple[int, int, int] | None:
    """Return (first, last, missing) of the gap that contains a number of ``boot``, or None.

    SQLite errors propagate.
    """
    gap = database.execute(
        "SELECT first, last, missing FROM gap WHERE survey = ? AND device = ? AND boot = ? AND first <= ?"
        " ORDER BY first DESC LIMIT 1",
        (*boot, sequence),
    ).fetchone()
    return gap if gap and sequence <= gap[1] else None


def damaged_records(database: sqlite3.Connection) -> Iterator[int]:
    """Return the ids of records with a wrong checksum; reads the whole journal."""
    with reported("journal: cannot be read"):
        for id, *values, checksum in database.execute(f"SELECT {_COLUMNS}, checksum FROM record"):
            if checksum is not None and checksum != _checksum(values):
                yield id


def _checksum(values: Sequence) -> int:
    """Return the CRC-32 of a record's columns except the id, or -1 if a value is outside its column's range."""
    try:
        return zlib.crc32(values[-1], zlib.crc32(_CHECKED.pack(*values[:-1])))
    except (struct.error, TypeError):
        return -1
