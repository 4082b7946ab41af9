"""The centre's one file: SQLite in write-ahead mode, each commit on the disk before it returns."""

from __future__ import annotations

import sqlite3
from pathlib import Path

FILE_NAME = "central.sqlite"

# Maps are blobs beside their provenance (20 kB each), so that a map and what is said about it are
# committed together or not at all.
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
"""


class StoreError(RuntimeError):
    """The centre's file cannot be opened or written, or does not hold what was asked for."""


def connect(data_dir: Path, create: bool = False) -> sqlite3.Connection:
    """A connection for the calling thread. Raises ``StoreError``."""
    path = data_dir / FILE_NAME
    if not create and not path.exists():
        raise StoreError(f"{path}: not found; expected the data_dir of a centre that has run")
    try:
        if create:
            data_dir.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=10.0, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path}: cannot be opened ({error}); expected a writable folder with room"
        ) from None
    return database
