"""The centre's one file: SQLite in write-ahead mode, each commit on the disk before it returns."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from central.errors import CentralError
from central.storage import schema

FILE_NAME = "central.sqlite"
LOCK_NAME = "central.lock"

# The newest map of an event, whatever the model, is the one of the latest records; of several maps of the same records
# (a refined one) the one stored last, as ids grow in that order. The index map_newest is in this order.
NEWEST_FIRST = "last_record DESC, map.rowid DESC"
NEWEST = (
    "map.rowid = (SELECT later.rowid FROM map AS later WHERE later.survey = map.survey"
    " AND later.event = map.event ORDER BY later.last_record DESC, later.rowid DESC LIMIT 1)"
)


class StoreError(CentralError, RuntimeError):
    """The centre's file cannot be opened or written, or does not hold what was asked for."""


class NoStoreError(StoreError):
    """There is no centre's file yet."""


class InUseError(StoreError):
    """Another process has claimed what only one may have."""


def connect(data_dir: Path, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """A connection for the calling thread; ``read_only`` leaves an older schema as it is. Raises ``StoreError``."""
    path = data_dir / FILE_NAME
    database = None
    try:
        if create:
            data_dir.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            raise NoStoreError(f"{path}: not found; expected the data_dir of a centre that has run")
        if read_only:
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
            database.text_factory = _text
            schema.version_of(database)
            return database
        database = sqlite3.connect(path, timeout=10.0, isolation_level=None)
        database.text_factory = _text
        # Before anything else: a file of a newer program is not to be touched.
        version = schema.version_of(database)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if version < schema.VERSION:
            _migrate(database, data_dir)
        elif create:
            schema.check(database)
    except (schema.SchemaError, InUseError) as error:
        if database:
            database.close()
        raise StoreError(f"{path}: {error}") from None
    except (sqlite3.Error, OSError) as error:
        if database:
            database.close()
        raise StoreError(
            f"{path}: cannot be opened ({error}); expected a writable folder with room, "
            "and in it no file or the one of a centre"
        ) from None
    return database


def _text(content: bytes) -> str:
    """Damaged text is read as damaged text: an error would end a query that reads other rows as well."""
    return content.decode("utf-8", "replace")


def _migrate(database: sqlite3.Connection, data_dir: Path) -> None:
    """Bring the file to this program's schema. Raises ``InUseError`` where an older centre would lose its footing."""
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and is_claimed(data_dir) and schema.version_of(database) < schema.VERSION:
        raise InUseError("an older centre is at work on it; stop that one, then start this one")
    schema.migrate(database)


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """What SQLite raises within becomes a ``StoreError`` that begins with ``what``."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{what} ({error}); is the disk full, or {FILE_NAME} damaged?") from None


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, what: str) -> Iterator[None]:
    """All that is written within, or none of it. Raises ``StoreError`` that begins with ``what``."""
    with reported(what):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def lock(data_dir: Path, name: str = LOCK_NAME, who: str = "another centre") -> IO[bytes]:
    """Claim ``data_dir`` for this process until the file returned is closed (or the process ends).

    Raises ``InUseError`` when another process has it (two centres would draw every map twice), and ``StoreError``
    where it cannot be claimed at all.
    """
    path = data_dir / name
    try:
        file = path.open("ab")
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror}); expected a writable folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InUseError(
            f"{data_dir}: {who} is at work there; wait for its end, or take another data_dir"
        ) from None
    except OSError as error:
        file.close()
        raise StoreError(
            f"{path}: cannot be locked ({error.strerror}); expected a disk of this machine"
        ) from None
    return file


def is_claimed(data_dir: Path) -> bool:
    """Whether a centre is at work on ``data_dir``; nothing is made. Raises ``StoreError`` where that cannot be told."""
    path = data_dir / LOCK_NAME
    try:
        with path.open("rb") as file:
            # Shared, so that two who ask at once do not take each other for a centre.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); expected the user of the centre"
        ) from None
    return False
