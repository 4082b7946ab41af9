"""Records that the centre has not acknowledged yet, safe from a crash or a power cut.

SQLite in write-ahead mode with ``synchronous = FULL``: ``append`` returns after the record is on the disk. That it
was acknowledged need not be: a power cut that takes it back has the record sent once more, and the centre knows it.
The spool is bounded; when full, records the centre refused go first, then the oldest that wait: a fresh recording is
worth more than an old one. Both are counted as dropped. What was refused waits again when the spool is opened: the
reason may have been one that an operator has mended since.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from firmware_py.errors import FirmwareError

# ``PRAGMA user_version``; 0 is a new spool, or one from before versions were counted, which is of version 1.
VERSION = 1


class SpoolError(FirmwareError, OSError):
    """The spool cannot be kept: no room, no permission, or not a spool."""


class _Damaged(sqlite3.DatabaseError):
    """What ``quick_check`` found, as SQLite itself raises it for what it finds by the way."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@dataclass(frozen=True)
class Spooled:
    """A record in the spool."""

    boot: int
    sequence: int
    data: bytes


def _lock(path: Path) -> IO[bytes]:
    """Claim a spool for this process until the file returned is closed, or the process ends."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SpoolError(
            f"{path}: another device is at work there; stop it, or give each its own [node] state_dir"
        ) from None
    return file


class Spool:
    """A durable, bounded queue. ``boot`` goes up by one each time it is opened, from ``first_boot``.

    It is one ``device``'s of one ``survey`` and open in one process: two would share the position in a replay, and
    each would leave out what the other had recorded. A file that is no whole database is renamed and a fresh one
    begun, as nobody may be there to do it; ``damaged`` says so, and is empty otherwise. Raises ``SpoolError``.
    """

    def __init__(
        self, path: Path, max_records: int, first_boot: int = 1, device: int = 0, survey: int = 1
    ) -> None:
        self._path = path
        self._max_records = max_records
        self.damaged = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_suffix(".lock"))
            try:
                owner = self._open(first_boot, (device, survey))
            except sqlite3.DatabaseError as error:
                # The lower byte says what went wrong, the rest where. A full or a busy disk is no damage.
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                self._put_file_aside(error)
                owner = self._open(first_boot, (device, survey))
        except SpoolError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(
                f"{path}: cannot keep a spool there ({error}); expected a writable folder with room"
            ) from None
        if owner != (device, survey):
            self.close()
            raise SpoolError(
                f"{path}: belongs to device {owner[0]} of survey {owner[1]}, this is device {device} of survey "
                f"{survey}; give each device its own [node] state_dir"
            )
        self._sequence = 0

    def _open(self, first_boot: int, device_and_survey: tuple[int, int]) -> tuple[int, int]:
        """Open the database and begin a boot, if it is this device's; the device and survey it belongs to."""
        self._database = sqlite3.connect(self._path, isolation_level=None)
        # Before anything is written: a newer device's spool stays as it is.
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            self._database.close()
            raise SpoolError(
                f"{self._path}: spool version {version}: expected at most {VERSION}; it is of a newer EPIC, install "
                "that one, or move the file away"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        # Damage that would come up later would end each start anew.
        (found,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _Damaged(found)
        self._database.executescript(
            "CREATE TABLE IF NOT EXISTS record ("
            " boot INTEGER, sequence INTEGER, data BLOB NOT NULL, refused TEXT,"
            " PRIMARY KEY (boot, sequence)) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;"
        )
        self._database.execute(f"PRAGMA user_version = {VERSION}")
        self._database.execute("INSERT OR IGNORE INTO counter VALUES ('boot', ?)", (first_boot - 1,))
        for name, value in zip(("device", "survey"), device_and_survey, strict=True):
            self._database.execute("INSERT OR IGNORE INTO counter VALUES (?, ?)", (name, value))
        owner = (self.counter("device"), self.counter("survey"))
        if owner == device_and_survey:
            self.boot = self._add("boot", 1)
            self._database.execute("UPDATE record SET refused = NULL WHERE refused IS NOT NULL")
        stat = self._path.stat()
        self._file = (stat.st_dev, stat.st_ino)
        return owner

    def _put_file_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = f"{self._path}.damaged-{int(time.time())}"
        # While it is open: with its closing SQLite may remove the log, which holds the latest records.
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}{end}", f"{aside}{end}")
        self._database.close()
        found = " ".join(str(error).split())
        self.damaged = (
            f"{self._path}: {found}; put aside as {aside}, with what waited in it, and begun anew; "
            "replace the disk if it happens again"
        )

    def check_file(self) -> None:
        """Raise ``SpoolError`` where the file is no longer in its place: what is written would be lost."""
        with suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._file:
                return
        raise SpoolError(
            f"{self._path}: removed, or its disk unmounted, while this device ran; mount the disk again, or make the "
            "folder, and start the device"
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it on the disk, or none. Raises ``SpoolError``."""
        self.check_file()
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise SpoolError(f"{self._path}: cannot be written ({error}); make room on the disk") from None

    def _read(self, query: str, *values: object) -> list[tuple]:
        """Rows of a query. Raises ``SpoolError`` when the disk fails."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"{self._path}: cannot be read ({error}); replace the disk") from None

    def _add(self, name: str, amount: int) -> int:
        (value,) = self._database.execute(
            "INSERT INTO counter VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = value + ?2 RETURNING value",
            (name, amount),
        ).fetchone()
        return value

    def counter(self, name: str) -> int:
        """A number kept over restarts: ``boot``, ``dropped``, ``position``, what ``keep`` was given; else 0."""
        rows = self._read("SELECT value FROM counter WHERE name = ?", name)
        return rows[0][0] if rows else 0

    def keep(self, name: str, value: int) -> None:
        """Keep a number over restarts; on return it is on the disk. Raises ``SpoolError``."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def set_boot(self, boot: int) -> None:
        """Change the number of this boot; records so far keep theirs. Raises ``SpoolError``."""
        self.keep("boot", boot)
        self.boot = boot

    def next_sequence(self) -> int:
        """The number of the next record of this boot."""
        self._sequence += 1
        return self._sequence

    def append(self, sequence: int, data: bytes, advance: int = 0) -> None:
        """Keep a record of this boot; on return it is on the disk.

        ``advance`` moves the counter ``position`` in the same transaction, so that a source goes on after
        a restart with the first recording that is not in the spool. Raises ``SpoolError`` on a full disk.
        """
        with self._transaction() as database:
            database.execute(
                "INSERT INTO record (boot, sequence, data) VALUES (?, ?, ?)", (self.boot, sequence, data)
            )
            (kept,) = database.execute("SELECT count(*) FROM record").fetchone()
            if kept > self._max_records:
                # Refused ones count as well: after a mend the centre would have taken them.
                gone = database.execute(
                    "DELETE FROM record WHERE (boot, sequence) IN (SELECT boot, sequence FROM record"
                    " ORDER BY refused IS NULL, boot, sequence LIMIT ?)",
                    (kept - self._max_records,),
                ).rowcount
                self._add("dropped", gone)
            if advance:
                self._add("position", advance)

    def waiting(
        self, limit: int, start: tuple[int, int] = (0, 0), end: tuple[int, int] = (1 << 32, 0)
    ) -> list[Spooled]:
        """The oldest records that are neither acknowledged nor refused, from (boot, sequence) ``start`` to
        before ``end``.
        """
        rows = self._read(
            "SELECT boot, sequence, data FROM record WHERE refused IS NULL"
            " AND (boot, sequence) >= (?, ?) AND (boot, sequence) < (?, ?)"
            " ORDER BY boot, sequence LIMIT ?",
            *start,
            *end,
            limit,
        )
        return [Spooled(*row) for row in rows]

    def __len__(self) -> int:
        """Records waiting for their acknowledgement."""
        return self._read("SELECT count(*) FROM record WHERE refused IS NULL")[0][0]

    def acknowledge(self, boot: int, sequences: tuple[int, ...]) -> list[int]:
        """Forget records that the centre has; returns those that were here.

        The disk is not waited for: what is written next takes it along, in order.
        """
        self._database.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction() as database:
                return [
                    sequence
                    for sequence in sequences
                    if database.execute(
                        "DELETE FROM record WHERE boot = ? AND sequence = ?", (boot, sequence)
                    ).rowcount
                ]
        finally:
            self._database.execute("PRAGMA synchronous = FULL")

    def set_aside(self, boot: int, sequence: int, reason: str) -> bool:
        """Stop sending a record that the centre refuses, until the next start; False if it was not waiting."""
        with self._transaction() as database:
            cursor = database.execute(
                "UPDATE record SET refused = ? WHERE boot = ? AND sequence = ? AND refused IS NULL",
                (reason, boot, sequence),
            )
            return cursor.rowcount == 1

    def close(self) -> None:
        self._database.close()
        self._lock.close()
