"""Store records durably until the centre acknowledges them; survives a crash or a power cut.

SQLite runs in write-ahead mode with ``synchronous = FULL``, except in ``append`` and ``acknowledge``. An appended
record survives a kill at once, and a power cut after ``sync``. It is sent before the sync (docs/decisions/0030).
Acknowledgements may be lost in a power cut. The record is then sent again, and the centre recognises it.

The spool is bounded. When it is full, records that the centre refused are dropped first, then the oldest waiting ones,
since a fresh recording is worth more than an old one. Both are counted as dropped. Refused records wait again after the
next start, since an operator may have removed the reason meanwhile.

The newest acknowledged records stay for a while: a centre that lost its latest writes asks for them again.
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
from firmware_py.protocol.packet import MAX_BOOT
from firmware_py.storage.sqlite_file import is_damage, open_log

# ``PRAGMA user_version``; 0 is a new spool, or one of version 1 from before versions were counted.
VERSION = 1
# Acknowledged records that stay. A centre's write-ahead log, whose loss is what they are for, holds about as many.
KEPT_RECORDS = 1000


class SpoolError(FirmwareError, OSError):
    """The spool cannot be used: no disk space, no permission, or not a spool file."""


class _Damaged(sqlite3.DatabaseError):
    """Damage found by ``quick_check``; raised as the error that SQLite itself raises for damage."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@dataclass(frozen=True)
class Spooled:
    """Record in the spool."""

    boot: int
    sequence: int
    data: bytes


def _lock(path: Path) -> IO[bytes]:
    """Claim a spool for this process until the returned file is closed or the process ends."""
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
    """Durable, bounded queue of one device and one survey, open in one process.

    ``boot`` increases by one at each opening, from ``first_boot``. Two processes would share the position in a replay,
    and each would skip the other's recordings. A damaged database is renamed and a new one created, since no operator
    may be present; ``damaged`` then says so, and is empty otherwise.

    Raises:
        SpoolError: The spool cannot be opened.
    """

    def __init__(
        self, path: Path, max_records: int, first_boot: int = 1, device: int = 0, survey: int = 1
    ) -> None:
        self._path = path
        self._max_records = max_records
        # The write-ahead log, for ``sync``.
        self._log: IO[bytes] | None = None
        self.damaged = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_suffix(".lock"))
            try:
                owner = self._open(first_boot, (device, survey))
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
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
        if self.boot > MAX_BOOT:
            self.close()
            raise SpoolError(
                f"{path}: expected at most {MAX_BOOT} as the number of a start, got {self.boot}; set the clock, move "
                f"[node] state_dir away, and at the centre run: epic central devices forget {device}"
            )
        self._sequence = 0

    def _open(self, first_boot: int, device_and_survey: tuple[int, int]) -> tuple[int, int]:
        """Open the database, begin a boot if it is this device's, and return its device and survey."""
        self._database = sqlite3.connect(self._path, isolation_level=None)
        # Check before any write: the spool of a newer version must stay unchanged.
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            self._database.close()
            raise SpoolError(
                f"{self._path}: spool version {version}: expected at most {VERSION}; it is of a newer EPIC, install "
                "that one, or move the file away"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        # Check now: damage found later would abort every start.
        (found,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _Damaged(found)
        self._database.executescript(
            "CREATE TABLE IF NOT EXISTS record ("
            " boot INTEGER, sequence INTEGER, data BLOB NOT NULL, refused TEXT,"
            " PRIMARY KEY (boot, sequence)) WITHOUT ROWID;"
            # An earlier EPIC ignores this table, so the version stays.
            "CREATE TABLE IF NOT EXISTS acknowledged ("
            " id INTEGER PRIMARY KEY, boot INTEGER, sequence INTEGER, data BLOB NOT NULL, UNIQUE (boot, sequence));"
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
        self._log = open_log(self._database)
        return owner

    def _put_file_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = f"{self._path}.damaged-{int(time.time())}"
        # Rename while the database is open. Closing may remove the write-ahead log, which holds the latest records.
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}{end}", f"{aside}{end}")
        self._close_files()
        found = " ".join(str(error).split())
        self.damaged = (
            f"{self._path}: {found}; put aside as {aside}, with what waited in it, and begun anew; "
            "replace the disk if it happens again"
        )

    def check_file(self) -> None:
        """Raise ``SpoolError`` if the file was moved or deleted; later writes would be lost."""
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
        """Commit all writes of the block, or none.

        Raises:
            SpoolError: The disk failed.
        """
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
        """Return the rows of a query.

        Raises:
            SpoolError: The disk failed.
        """
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
        """Return a persistent number: ``boot``, ``dropped``, ``position`` or a key given to ``keep``; 0 if unset."""
        rows = self._read("SELECT value FROM counter WHERE name = ?", name)
        return rows[0][0] if rows else 0

    def keep(self, name: str, value: int) -> None:
        """Store a number persistently; on return it is on the disk.

        Raises:
            SpoolError: The disk failed.
        """
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def set_boot(self, boot: int) -> None:
        """Change the number of this boot; earlier records keep theirs.

        Raises:
            SpoolError: The disk failed.
        """
        self.keep("boot", boot)
        self.boot = boot

    def next_sequence(self) -> int:
        """The number of the next record of this boot."""
        self._sequence += 1
        return self._sequence

    def append(self, sequence: int, data: bytes, advance: int = 0) -> None:
        """Append a record of this boot; ``sync`` puts it on the disk.

        ``advance`` increments the counter ``position`` in the same transaction. After a restart a source then resumes
        with the first recording that is not in the spool.

        Raises:
            SpoolError: The disk is full.
        """
        with self._without_sync(), self._transaction() as database:
            database.execute(
                "INSERT INTO record (boot, sequence, data) VALUES (?, ?, ?)", (self.boot, sequence, data)
            )
            (kept,) = database.execute("SELECT count(*) FROM record").fetchone()
            if kept > self._max_records:
                # Dropped refused records count too: the centre might have accepted them later.
                gone = database.execute(
                    "DELETE FROM record WHERE (boot, sequence) IN (SELECT boot, sequence FROM record"
                    " ORDER BY refused IS NULL, boot, sequence LIMIT ?)",
                    (kept - self._max_records,),
                ).rowcount
                self._add("dropped", gone)
            if advance:
                self._add("position", advance)

    def sync(self) -> None:
        """Wait until the disk has all appended records.

        Raises:
            SpoolError: The disk failed.
        """
        assert self._log, "the spool is open"
        try:
            os.fdatasync(self._log.fileno())
        except OSError as error:
            raise SpoolError(
                f"{self._path}: cannot be kept on the disk ({error.strerror}); check the disk"
            ) from None

    @contextmanager
    def _without_sync(self) -> Iterator[None]:
        self._database.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._database.execute("PRAGMA synchronous = FULL")

    def waiting(
        self, limit: int, start: tuple[int, int] = (0, 0), end: tuple[int, int] = (1 << 32, 0)
    ) -> list[Spooled]:
        """Return the oldest records neither acknowledged nor refused, with ``start`` <= (boot, sequence) < ``end``."""
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
        """Return the number of unacknowledged records."""
        return self._read("SELECT count(*) FROM record WHERE refused IS NULL")[0][0]

    def acknowledge(self, boot: int, sequences: tuple[int, ...]) -> list[int]:
        """Stop sending acknowledged records and return those that were waiting or refused; the newest are kept.

        Not synced; the next write syncs it in order.
        """
        with self._without_sync(), self._transaction() as database:
            found = []
            for sequence in sequences:
                rows = database.execute(
                    "DELETE FROM record WHERE boot = ? AND sequence = ? RETURNING boot, sequence, data",
                    (boot, sequence),
                ).fetchall()
                if rows:
                    database.execute(
                        "INSERT OR REPLACE INTO acknowledged (boot, sequence, data) VALUES (?, ?, ?)", rows[0]
                    )
                    found.append(sequence)
            database.execute(
                "DELETE FROM acknowledged WHERE id <= (SELECT max(id) FROM acknowledged) - ?",
                (KEPT_RECORDS,),
            )
            return found

    def newest_acknowledged(self) -> tuple[int, int]:
        """Return (boot, sequence) of the newest record that is kept after its acknowledgement; (0, 0) for none."""
        rows = self._read("SELECT boot, sequence FROM acknowledged ORDER BY boot DESC, sequence DESC LIMIT 1")
        return rows[0] if rows else (0, 0)

    def send_again(self, boot: int, first: int, last: int) -> tuple[int, int]:
        """Put acknowledged records back among those that wait, from ``first`` to ``last`` of a boot.

        Returns:
            How many wait again, and how many of these numbers are not here any more.

        Raises:
            SpoolError: The disk failed.
        """
        span = (boot, first, last)
        with self._transaction() as database:
            again = database.execute(
                "INSERT OR IGNORE INTO record (boot, sequence, data) SELECT boot, sequence, data FROM acknowledged"
                " WHERE boot = ? AND sequence BETWEEN ? AND ?",
                span,
            ).rowcount
            database.execute("DELETE FROM acknowledged WHERE boot = ? AND sequence BETWEEN ? AND ?", span)
            (here,) = database.execute(
                "SELECT count(*) FROM record WHERE boot = ? AND sequence BETWEEN ? AND ?", span
            ).fetchone()
        return again, last - first + 1 - here

    def set_aside(self, boot: int, sequence: int, reason: str) -> bool:
        """Stop sending a refused record until the next start; return False if it was not waiting."""
        with self._transaction() as database:
            cursor = database.execute(
                "UPDATE record SET refused = ? WHERE boot = ? AND sequence = ? AND refused IS NULL",
                (reason, boot, sequence),
            )
            return cursor.rowcount == 1

    def close(self) -> None:
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        if self._log:
            self._log.close()
        self._database.close()
