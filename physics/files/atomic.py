"""Write files atomically: they appear under their name when complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` at the end of the block.

    After an error the temporary file is removed and ``path`` is unchanged. Only one writer per file is allowed, because
    two would share the temporary name.

    Args:
        suffix: End of the temporary name, for a library that chooses the format by it. Default: ``.tmp``, so that
            watchers of ``*.npy`` do not see the file.
    """
    temporary = path.with_name(f".{path.name}.tmp{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
