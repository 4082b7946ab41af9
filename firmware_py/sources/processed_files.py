"""Move processed recordings of a watched folder into its ``sent/`` and ``rejected/``."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import shutil
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from firmware_py.inference.companding import GatherError

SENT, REJECTED = "sent", "rejected"
# Batch size when scanning for the oldest files; avoids scanning a full sent/ for each recording.
LOOKED_UP = 256


def recordings_in(folder: Path) -> Iterator[Path]:
    """Yield the recordings in a folder. Programs write under hidden names and then rename."""
    return (path for path in folder.glob("*.npy") if not path.name.startswith("."))


def event_in_name(path: Path) -> int:
    """Return the last number in a recording's name, or -1; the mark of a duplicate (``.~2~``) does not count."""
    numbers = re.findall(r"\d+", re.sub(r"\.~\d+~$", "", path.stem))
    return int(numbers[-1]) if numbers else -1


def event_of_moved(path: Path) -> int:
    """Return the event of a recording in ``sent/``, or -1.

    Earlier versions marked a duplicate of NAME.npy as NAME.2.npy. A recorder may also use such a name, so
    NAME.npy must be there.
    """
    plain = path.with_name(re.sub(r"\.\d+$", "", path.stem) + path.suffix)
    return event_in_name(plain if plain.exists() else path)


class ProcessedFiles:
    """Folders for processed recordings in ``folder``; created if missing.

    Raises:
        GatherError: A file cannot be created in ``folder`` or moved to either. A device that cannot move its recordings
            would record them again at each start.
    """

    def __init__(self, folder: Path, keep_free_mib: int = 0) -> None:
        self._folder = folder
        self._keep_free_bytes = keep_free_mib << 20
        self._oldest: deque[Path] = deque()
        try:
            if not folder.is_dir():
                raise GatherError(f"{folder}: no such folder; create it, or mend [source] path")
            for name in (SENT, REJECTED):
                self._try_to_move(name)
        except OSError as error:
            raise GatherError(
                f"{folder}: recordings cannot be moved to its {SENT}/ and {REJECTED}/ ({error.strerror}); make all "
                "three writable for this device's user, on one file system"
            ) from None

    def _try_to_move(self, name: str) -> None:
        folder = self._folder / name
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            whose, made = self._folder.stat(), folder.stat()
            with contextlib.suppress(PermissionError):
                folder.chmod(stat.S_IMODE(whose.st_mode))
                # `check` may run as root, but the device's own user must be able to move files. The service itself
                # must not call chown, for which its filter of system calls may end it.
                if os.geteuid() == 0 and (made.st_uid, made.st_gid) != (whose.st_uid, whose.st_gid):
                    os.chown(folder, whose.st_uid, whose.st_gid)
        # A hidden name is never taken for a recording. The name is unique, since another process may test at the same
        # time.
        here = self._folder / f".epic-{os.getpid()}"
        there = folder / here.name
        try:
            here.touch()
            here.rename(there)
            there.unlink()
        finally:
            with contextlib.suppress(OSError):
                here.unlink(missing_ok=True)

    def move(self, path: Path, to: str) -> Path | None:
        """Move ``path`` into ``to`` without overwriting: a duplicate name becomes NAME.~2~.npy.

        Returns:
            The new path, or None if the file is already gone.

        Raises:
            OSError: The file cannot be moved.
        """
        folder = self._folder / to
        folder.mkdir(exist_ok=True)
        place, number = folder / path.name, 1
        while os.path.lexists(place):
            number += 1
            place = folder / f"{path.stem}.~{number}~{path.suffix}"
        try:
            path.rename(place)
        except FileNotFoundError:
            return None
        return place

    def sent(self) -> Iterator[Path]:
        """Yield the recordings of ``sent/``."""
        return recordings_in(self._folder / SENT)

    def make_room(self) -> int:
        """Delete the oldest recordings of ``sent/`` until the disk has the required free space; return how many."""
        removed = 0
        with contextlib.suppress(OSError):
            # Sum up the deleted sizes: on a file system that updates its free space late, a loop on free space would
            # delete all files.
            missing_bytes = self._keep_free_bytes - shutil.disk_usage(self._folder).free
            while missing_bytes > 0 and (path := self._next_oldest()):
                with contextlib.suppress(FileNotFoundError):
                    size = path.stat().st_size
                    path.unlink()
                    missing_bytes -= size
                    removed += 1
        return removed

    def _next_oldest(self) -> Path | None:
        if not self._oldest:
            with os.scandir(self._folder / SENT) as entries:
                times = (
                    (entry.stat(follow_symlinks=False).st_mtime_ns, entry.path)
                    for entry in entries
                    if entry.name.endswith(".npy") and entry.is_file(follow_symlinks=False)
                )
                self._oldest.extend(Path(path) for _, path in heapq.nsmallest(LOOKED_UP, times))
        return self._oldest.popleft() if self._oldest else None
