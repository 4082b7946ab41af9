"""What spool and journal need of SQLite beside its Python module: the kind of an error, and the log for a sync."""

from __future__ import annotations

import sqlite3
from typing import IO


def is_damage(error: Exception) -> bool:
    """Return True if the file is damaged or no database; a full or busy disk is not damage."""
    # SQLite's extended error code has the primary code in its low byte.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def open_log(database: sqlite3.Connection) -> IO[bytes]:
    """Open the write-ahead log of a database; keep it open and sync it with ``os.fdatasync``.

    Linux reports a failed write only to files that were open when it failed. After SQLite has received the error, for
    example in a checkpoint, a file that is opened later syncs without an error. An open file also needs no free
    descriptor.

    Raises:
        OSError: It cannot be opened.
    """
    # SQLite follows a symbolic link; the log lies beside the real file.
    _, _, path = database.execute("PRAGMA database_list").fetchone()
    return open(f"{path}-wal", "rb")
