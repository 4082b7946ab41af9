"""The centre's one file: SQLite in write-ahead mode, each commit on the disk before it returns."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FILE_NAME = "central.sqlite"
LOCK_NAME = "central.lock"

# Maps are blobs beside their provenance (20 kB each), so that a map and what is said about it are
# committed together or not at all.
# device_boot: what the journal has of each start of a device; its last four but one are of the record with the
# highest number. scanned: gaps up to there are in the table gap.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    id INTEGER PRIMARY KEY,
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    event INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    sample_time_us INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (survey, device, boot, sequence)
);
CREATE INDEX IF NOT EXISTS record_of_event ON record (survey, event, model_hash);
CREATE TABLE IF NOT EXISTS map (
    survey INTEGER NOT NULL,
    event INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    revision INTEGER NOT NULL,
    last_record INTEGER NOT NULL,
    partial INTEGER NOT NULL,
    provenance TEXT NOT NULL,
    n_depth INTEGER NOT NULL,
    n_width INTEGER NOT NULL,
    velocity BLOB NOT NULL,
    uncertainty BLOB NOT NULL,
    PRIMARY KEY (survey, event, model_hash, revision)
);
CREATE TABLE IF NOT EXISTS device_boot (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    records INTEGER NOT NULL,
    highest INTEGER NOT NULL,
    sample_time_us INTEGER NOT NULL,
    received_us INTEGER NOT NULL,
    model_hash BLOB NOT NULL,
    scanned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (survey, device, boot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    heard_us INTEGER NOT NULL,
    bytes_received INTEGER NOT NULL,
    bytes_sent INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    refusal TEXT NOT NULL,
    status TEXT NOT NULL,
    PRIMARY KEY (survey, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rate (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    latent_bytes INTEGER NOT NULL,
    set_us INTEGER NOT NULL,
    PRIMARY KEY (survey, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gap (
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    PRIMARY KEY (survey, device, boot, first)
) WITHOUT ROWID;
"""

# 1 where somebody should look at a map; what its provenance has under these names says why.
# (What is no JSON to SQLite, a NaN, must not keep a map from being stored.)
FLAGGED = (
    "(CASE WHEN json_valid(provenance) THEN coalesce(json_extract(provenance, '$.replaced'), 0) > 0"
    " OR coalesce(json_array_length(provenance, '$.flags'), 0) > 0 ELSE 0 END)"
)
# When a map was held against the waves, null where it was not yet; what is no JSON is left alone.
CHECKED_US = (
    "(CASE WHEN NOT json_valid(provenance) THEN 0 WHEN json_type(provenance, '$.consistency') IS NOT NULL"
    " THEN coalesce(json_extract(provenance, '$.consistency.checked_us'), 0) END)"
)
# Which of an event's maps is its newest, whatever the model: the one of the latest records; of several maps of the
# same records (one refined, say) the last drawn, as ids grow in that order. Whoever asks for the newest asks by these.
# A + keeps SQLite from walking all of a survey by id where the event's few maps are meant.
NEWEST_FIRST = "last_record DESC, +map.rowid DESC"
NEWEST = (
    "NOT EXISTS (SELECT 1 FROM map AS later WHERE later.survey = map.survey AND later.event = map.event"
    " AND (later.last_record, +later.rowid) > (map.last_record, map.rowid))"
)
# map_of_event has all that tells an event's newest map: no map is read to find it.
# The others: the last drawn of a survey, or of the few that are partial, flagged or not checked, among very many.
_INDEXES = f"""
CREATE INDEX IF NOT EXISTS map_of_event ON map (event, survey, model_hash, last_record);
CREATE INDEX IF NOT EXISTS map_of_survey ON map (survey);
CREATE INDEX IF NOT EXISTS partial_map ON map (partial) WHERE partial = 1;
CREATE INDEX IF NOT EXISTS flagged_map ON map ({FLAGGED});
CREATE INDEX IF NOT EXISTS checked_map ON map ({CHECKED_US});
"""


class StoreError(RuntimeError):
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
            return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
        database = sqlite3.connect(path, timeout=10.0, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA + _INDEXES)
    except (sqlite3.Error, OSError) as error:
        if database:
            database.close()
        raise StoreError(
            f"{path}: cannot be opened ({error}); expected a writable folder with room, "
            "and in it no file or the one of a centre"
        ) from None
    return database


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
