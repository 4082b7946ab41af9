"""Records that the centre has not acknowledged yet, safe from a crash or a power cut.

SQLite in write-ahead mode with ``synchronous = FULL``: ``append`` returns after the record is on the disk. That it
was acknowledged need not be: a power cut that takes it back has the record sent once more, and the centre knows it.
The spool is bounded; when full, records the centre refused go first, then the oldest that wait, which is
counted: a fresh recording is worth more than an old one to whoever watches the map.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


class SpoolError(OSError):
    """The spool cannot be kept: no room, no permission, or not a spool."""


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

    It is one ``device``'s and open in one process: two would share the position in a replay, and each would
    leave out what the other had recorded.
    """

    def __init__(self, path: Path, max_records: int, first_boot: int = 1, device: int = 0) -> None:
        self._path = path
        self._max_records = max_records
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_suffix(".lock"))
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(
                "CREATE TABLE IF NOT EXISTS record ("
                " boot INTEGER, sequence INTEGER, data BLOB NOT NULL, refused TEXT,"
                " PRIMARY KEY (boot, sequence)) WITHOUT ROWID;"
                "CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;"
            )
            self._database.execute("INSERT OR IGNORE INTO counter VALUES ('boot', ?)", (first_boot - 1,))
            self._database.execute("INSERT OR IGNORE INTO counter VALUES ('device', ?)", (device,))
            owner = self.counter("device")
            if owner == device:
                self.boot = self._add("boot", 1)
        except SpoolError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(
                f"{path}: cannot keep a spool there ({error}); expected a writable folder with room"
            ) from None
        if owner != device:
            self.close()
            raise SpoolError(
                f"{path}: belongs to device {owner}, this is device {device}; "
                "give each device its own [node] state_dir"
            )
        self._sequence = 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it on the disk, or none. Raises ``SpoolError``."""
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
                gone = database.execute(
                    "DELETE FROM record WHERE (boot, sequence) IN (SELECT boot, sequence FROM record"
                    " ORDER BY refused IS NULL, boot, sequence LIMIT ?) RETURNING refused",
                    (kept - self._max_records,),
                ).fetchall()
                self._add("dropped", sum(refused is None for (refused,) in gone))
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
        """Stop sending a record that the centre refuses, but keep it; False if it was not waiting."""
        with self._transaction() as database:
            cursor = database.execute(
                "UPDATE record SET refused = ? WHERE boot = ? AND sequence = ? AND refused IS NULL",
                (reason, boot, sequence),
            )
            return cursor.rowcount == 1

    def close(self) -> None:
        self._database.close()
        self._lock.close()
