"""Open the centre's SQLite database (write-ahead mode); each commit is on the disk before it returns.

The journal syncs its own commits (``central.storage.journal``).
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from central.errors import CentralError
from central.storage import schema
from firmware_py.storage.sqlite_file import is_damage

FILE_NAME = "central.sqlite"
LOCK_NAME = "central.lock"

# Order of an event's maps, across models: by last record, then by id. A refined map has the same last record as its
# original and a higher id. The index map_newest has this order.
NEWEST_FIRST = "last_record DESC, map.rowid DESC"
NEWEST = (
    "map.rowid = (SELECT later.rowid FROM map AS later WHERE later.survey = map.survey"
    " AND later.event = map.event ORDER BY later.last_record DESC, later.rowid DESC LIMIT 1)"
)

# SQL expression: a decoder's map that a later one of the same event and model replaces. A refined map replaces none,
# because the next refinement begins at the decoder's map.
SUPERSEDED = (
    f"(NOT {schema.REFINED} AND EXISTS (SELECT 1 FROM map AS later WHERE later.survey = map.survey"
    " AND later.event = map.event AND later.model_hash = map.model_hash AND later.revision > map.revision"
    f" AND NOT {schema.REFINED.replace('provenance', 'later.provenance')}))"
)


class StoreError(CentralError, RuntimeError):
    """The database cannot be opened or written, or lacks the requested entry."""


class DamagedStoreError(StoreError):
    """The database is damaged or has another schema.

    ``epic`` then exits with ``exit_code``, because a restart would not help.
    """

    # EX_DATAERR; deploy/epic-central.service does not restart after it.
    exit_code = 65


class NoStoreError(StoreError):
    """The database does not exist yet."""


class InUseError(StoreError):
    """Another process holds an exclusive claim."""


def connect(data_dir: Path, create: bool = False, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection for the calling thread; ``read_only`` does not migrate an older schema.

    Raises:
        DamagedStoreError: The file is damaged, or no database of a centre of this version.
        StoreError: The database cannot be opened.
    """
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
        # Check first: the file of a newer program must not be changed.
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
        kind = DamagedStoreError if isinstance(error, schema.SchemaError) else StoreError
        raise kind(f"{path}: {error}") from None
    except (sqlite3.Error, OSError) as error:
        if database:
            database.close()
        if is_damage(error):
            raise DamagedStoreError(
                f"{path}: cannot be opened ({error}); restore a backup with epic central restore, or move the file "
                "away and begin anew"
            ) from None
        raise StoreError(
            f"{path}: cannot be opened ({error}); expected a writable folder with room, "
            "and in it no file or the one of a centre"
        ) from None
    return database


def _text(content: bytes) -> str:
    """Decode damaged text with replacements; an error would end a query that also reads intact rows."""
    return content.decode("utf-8", "replace")


def _migrate(database: sqlite3.Connection, data_dir: Path) -> None:
    """Migrate the file to this program's schema.

    Raises:
        InUseError: A centre of an older version is running on the file.
    """
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and is_claimed(data_dir) and schema.version_of(database) < schema.VERSION:
        raise InUseError("an older centre is running on it; stop that one, then start this one")
    schema.migrate(database)


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Convert SQLite's errors to a ``StoreError`` that begins with ``what``."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise DamagedStoreError(f"{what} ({error}): {FILE_NAME} is damaged; restore a backup") from None
        raise StoreError(f"{what} ({error}); is the disk full?") from None


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, what: str) -> Iterator[None]:
    """Commit all writes of the block, or none.

    Raises:
        StoreError: The transaction failed; the message begins with ``what``.
    """
    with reported(what):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back after some errors.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def lock(data_dir: Path, name: str = LOCK_NAME, who: str = "another centre") -> IO[bytes]:
    """Claim ``data_dir`` for this process until the returned file is closed or the process ends.

    Raises:
        InUseError: Another process has claimed it; two centres would decode every map twice.
        StoreError: The claim cannot be made.
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
            f"{data_dir}: {who} is running there; wait until it ends, or use another data_dir"
        ) from None
    except OSError as error:
        file.close()
        raise StoreError(
            f"{path}: cannot be locked ({error.strerror}); expected a disk of this machine"
        ) from None
    return file


def is_claimed(data_dir: Path, name: str = LOCK_NAME) -> bool:
    """Return True if a centre, or another holder of ``name``, is running on ``data_dir``. Creates no file.

    Raises:
        StoreError: The state of the lock cannot be read.
    """
    path = data_dir / name
    try:
        with path.open("rb") as file:
            # A shared lock, so that two simultaneous checks do not take each other for a centre.
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
