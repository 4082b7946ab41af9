"""A SQLite database as a kill at any moment leaves it.

In write-ahead mode SQLite only appends to the log until a checkpoint, so a kill leaves a prefix of the log beside the
unchanged database. The images are all prefixes that end with a page, and one that ends within each page.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

LOG_HEADER_BYTES = 32
PAGE_HEADER_BYTES = 24
# SQLite copies the log into the database after so many pages.
CHECKPOINT_PAGES = 1000


def log_bytes(database: Path) -> int:
    """Length of the write-ahead log now."""
    return Path(f"{database}-wal").stat().st_size


def rows(database: Path, *tables: str) -> dict[str, list[tuple]]:
    """All rows of ``tables``."""
    with closing(sqlite3.connect(database)) as connection:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


def check_kills(
    database: Path, tables: Sequence[str], steps: Sequence[Callable[[], object]], folder: Path
) -> None:
    """Assert that a kill at any write of ``steps`` leaves ``tables`` as after the last step that was reported done.

    The images are made in ``folder``.
    """
    begin = log_bytes(database)
    # (Length of the log, content) after each step that was reported done.
    reported = [(begin, rows(database, *tables))]
    for step in steps:
        step()
        reported.append((log_bytes(database), rows(database, *tables)))
    seen = set()
    for length, copy in images(database, begin, folder):
        done = sum(end <= length for end, _ in reported) - 1
        assert rows(copy, *tables) == reported[done][1], f"{length} bytes of the log, {done} steps reported"
        seen.add(done)
    assert seen == set(range(len(steps) + 1))


def images(database: Path, begin: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield (length of the log, copy of ``database``) for every prefix of the log from ``begin`` bytes on.

    The database is open and is not written meanwhile. A copy is gone when the next one is yielded.
    """
    log = Path(f"{database}-wal").read_bytes()
    with closing(sqlite3.connect(database)) as connection:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    step = PAGE_HEADER_BYTES + page_bytes
    assert len(log) < LOG_HEADER_BYTES + CHECKPOINT_PAGES * step, "a checkpoint would change the database"
    for end in range(begin, len(log) + 1, step):
        for length in sorted({end, min(end + step // 2, len(log))}):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            copy = folder / database.name
            shutil.copy(database, copy)
            Path(f"{copy}-wal").write_bytes(log[:length])
            yield length, copy
