"""Write files atomically: they appear under their name when complete, also after a power cut."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, suffix: str = "", durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` at the end of the block.

    After an error the temporary file is removed and ``path`` is unchanged. Only one writer per file is allowed, because
    two would share the temporary name.

    Args:
        suffix: End of the temporary name, for a library that chooses the format by it. Default: ``.tmp``, so that
            watchers of ``*.npy`` do not see the file.
        durable: Write it to the disk before it replaces ``path``. False is for what can be made again.
    """
    temporary = path.with_name(f".{path.name}.tmp{suffix}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file to the disk, or the names of files in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Write a folder with all files in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
