"""Read a device's recordings: replayed OpenFWI files or a watched folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_py.inference.companding import GatherError
from firmware_py.sources.processed_files import (
    REJECTED,
    SENT,
    ProcessedFiles,
    event_in_name,
    event_of_moved,
    recordings_in,
)

MAGIC = b"\x93NUMPY"


def say_nothing(what: str, **values: object) -> None:
    """Discard a log entry."""


@dataclass(frozen=True)
class Recording:
    """One event recorded by this device: ``part (S, T, R)`` float."""

    event: int
    sample_time_us: int
    part: np.ndarray
    path: Path


class UnreadableError(GatherError):
    """A recording cannot be read now: no permission, or a disk fault. The file itself may be intact."""


def open_gathers(path: Path) -> np.ndarray:
    """Map the gathers of a .npy file, ``(n, S, T, R)``.

    Raises:
        GatherError: the file is not there or damaged, or holds no gathers.
        UnreadableError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        if not (MAGIC.startswith(start) or start.startswith(b"PK")):
            raise GatherError(f"{path}: expected a .npy file, got other content; write it with numpy.save")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise GatherError(f"{path}: not found; expected a .npy file of gathers") from None
    except IsADirectoryError:
        raise GatherError(f"{path}: expected a .npy file of gathers, got a folder") from None
    except OSError as error:
        if error.strerror:
            raise UnreadableError(
                f"{path}: cannot be read ({error.strerror}); make it readable for this device's user, or replace the "
                "disk"
            ) from None
        raise GatherError(f"{path}: not a whole .npy file ({error}); copy it again") from None
    except GatherError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise GatherError(
                f"{path}: expected floating gathers, got Python objects; save one array"
            ) from None
        # With a damaged header, numpy raises arbitrary errors of its parser, tokenizer or memory map.
        raise GatherError(f"{path}: not a whole .npy file ({error}); copy it again") from None
    if not isinstance(array, np.ndarray):
        raise GatherError(f"{path}: expected a .npy file of gathers, got an archive; save one array a file")
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.dtype.kind != "f":
        raise GatherError(
            f"{path}: expected floating gathers (n, sources, samples, receivers), "
            f"got {array.dtype} {array.shape}"
        )
    return array


@dataclass(frozen=True)
class Selection:
    """This device's part of a gather: ``receivers`` of the whole survey's ``shape (S, T, R)``."""

    shape: tuple[int, int, int]
    receivers: tuple[int, ...]

    def of(self, gather: np.ndarray, path: Path) -> np.ndarray:
        """Return this device's ``(S, T, len(receivers))`` from a whole gather, or from its own part."""
        own = (*self.shape[:2], len(self.receivers))
        if gather.shape == self.shape:
            return np.asarray(gather[:, :, list(self.receivers)])
        if gather.shape == own:
            return np.asarray(gather)
        raise GatherError(
            f"{path}: expected a gather {self.shape} or this device's part {own}, got {gather.shape}"
        )


class FileSource:
    """Replay gather files in order; the k-th gather over all files is event k (from 1).

    ``position`` is the number of gathers already replayed. The number ``files`` identifies the files it refers to.
    """

    rejected = 0
    rejection = ""

    def __init__(
        self, paths: list[Path], selection: Selection, interval_s: float, limit: int, position: int = 0
    ) -> None:
        self._files = [(path, open_gathers(path)) for path in paths]
        self._selection = selection
        self._interval_s = interval_s
        total = sum(len(gathers) for _, gathers in self._files)
        self._last = min(total, limit) if limit else total
        self.position = position
        names = b"\0".join(os.fsencode(path) for path in paths)
        # A number that the spool can keep.
        self.files = int.from_bytes(hashlib.sha256(names).digest()[:7])
        self._due = 0.0

    @property
    def exhausted(self) -> bool:
        return self.position >= self._last

    def poll(self) -> Recording | None:
        """Return the next recording if it is due.

        Raises:
            GatherError: The gather has another shape.
        """
        if self.exhausted or time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + self._interval_s
        index = self.position
        self.position += 1
        path, gather = self._gather(index)
        return Recording(self.position, time.time_ns() // 1000, self._selection.of(gather, path), path)

    def _gather(self, index: int) -> tuple[Path, np.ndarray]:
        """Return the ``index``-th gather over all files, and its file."""
        for path, gathers in self._files:
            if index < len(gathers):
                return path, gathers[index]
            index -= len(gathers)
        raise IndexError(index)

    def find(self, event: int, sample_time_us: int) -> np.ndarray:
        """Return this device's samples ``(S, T, R)`` of ``event``; files have no other time than a replay's.

        Raises:
            GatherError: The event is not in the files, or was not replayed yet.
        """
        if not 1 <= event <= self.position:
            raise GatherError(
                f"event {event}: not recorded here; this replay has recorded 1 to {self.position}"
            )
        path, gather = self._gather(event - 1)
        return self._selection.of(gather, path)

    def kept(self) -> int:
        """Return the number of recordings that ``find`` can return."""
        return self.position

    def done(self, recording: Recording) -> None:
        """The recording is in the spool."""

    def reject(self, recording: Recording, reason: str) -> None:
        """Raise the error: a replayed file that cannot be encoded is a configuration error."""
        raise GatherError(f"{recording.path}: event {recording.event}: {reason}")

    def make_room(self) -> None:
        """Do nothing: replayed files are not this device's to delete."""


class FolderSource:
    """Watch a folder; ``NAME<number>.npy`` is the gather of event <number>.

    A file is complete once its size and modification time are the same at two polls. A program that may pause during
    a write uses a hidden name (``.NAME``) and renames the file.

    A recording moves to ``sent/`` when its record is in the spool, or to ``rejected/`` (with the reason in a ``.txt``)
    if it cannot be encoded: one bad file does not stop a device in the field. An unreadable file is logged, left in
    place and retried. A file that cannot be moved is logged and ignored until the next start.

    A power cut between spool and ``sent/`` records the event twice; the centre then uses the later record. While the
    disk has less than ``keep_free_mib`` free, the oldest files of ``sent/`` are deleted, and those of ``rejected/``
    never, because nothing else has their content. ``rejected`` counts the recordings that could not be encoded;
    ``rejection`` is the last reason.
    """

    exhausted = False
    # A folder has no position to resume from.
    position = 0

    def __init__(
        self,
        folder: Path,
        selection: Selection,
        poll_s: float,
        keep_free_mib: int = 0,
        log: Callable[..., None] = say_nothing,
    ) -> None:
        self._aside = ProcessedFiles(folder, keep_free_mib)
        self._folder = folder
        self._selection = selection
        self._poll_s = poll_s
        self._log = log
        self._due = 0.0
        self.rejected = 0
        self.rejection = ""
        self._seen: dict[Path, tuple[int, int]] = {}
        # Files returned by ``poll`` and not moved by ``done`` or ``reject`` yet.
        self._taken: set[Path] = set()
        # Logged as unreadable.
        self._unreadable: set[Path] = set()
        self._ready: Iterator[Path] = iter(())

    def poll(self) -> Recording | None:
        """Return the next complete file, lowest number first, or None."""
        path = next(self._ready, None)
        if path is None:
            if time.monotonic() < self._due:
                return None
            self._due = time.monotonic() + self._poll_s
            self._ready = iter(self._settled())
            path = next(self._ready, None)
        if path is None:
            return None
        try:
            # A clock before 1970 is not set; a record says so with 0.
            sample_time_us = max(path.stat().st_mtime_ns // 1000, 0)
        except FileNotFoundError:
            return None
        self._taken.add(path)
        event = event_in_name(path)
        recording = Recording(event, sample_time_us, np.empty((0, 0, 0)), path)
        try:
            if not 0 <= event < 1 << 32:
                raise GatherError(
                    f"{path}: expected a name that ends in the event's number, 0 to {(1 << 32) - 1}, "
                    "such as shot-0001.npy"
                )
            gathers = open_gathers(path)
            if len(gathers) != 1:
                raise GatherError(f"{path}: expected one gather a file, got {len(gathers)}")
            part = self._selection.of(gathers[0], path)
        except UnreadableError as error:
            self._taken.discard(path)
            if path not in self._unreadable:
                self._unreadable.add(path)
                self._log("unreadable", event=event, reason=str(error))
            return None
        except GatherError as error:
            self.reject(recording, str(error))
            return None
        return Recording(event, sample_time_us, part, path)

    def find(self, event: int, sample_time_us: int) -> np.ndarray:
        """Return this device's samples ``(S, T, R)`` of a recorded event. May be called on another thread.

        A recording is identified by the last number in its name and its modification time, which moving keeps. With
        ``sample_time_us`` 0 the newest one of the event's number is taken.

        Raises:
            GatherError: The recording is not there any more, or not readable.
        """
        while True:
            path = self._path_of(event, sample_time_us)
            try:
                return self._selection.of(open_gathers(path)[0], path)
            except GatherError:
                # The other thread may have moved the file to sent/ meanwhile.
                if path.exists():
                    raise

    def _path_of(self, event: int, sample_time_us: int) -> Path:
        found = []
        # sent/ comes last: a file that is moved meanwhile is found there.
        for recordings, event_of in (
            (recordings_in(self._folder), event_in_name),
            (self._aside.sent(), event_of_moved),
        ):
            for path in recordings:
                if event_of(path) == event:
                    with contextlib.suppress(FileNotFoundError):
                        time_us = max(path.stat().st_mtime_ns // 1000, 0)
                        if sample_time_us in (time_us, 0):
                            found.append((time_us, path))
        if not found:
            raise GatherError(
                f"event {event}: removed, or never recorded here; while less than [source] keep_free_mib "
                f"is free, the oldest of {SENT}/ are removed"
            )
        return max(found)[1]

    def _settled(self) -> list[Path]:
        seen = {}
        for path in recordings_in(self._folder):
            # A file may disappear.
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                seen[path] = (state.st_size, state.st_mtime_ns)
        # A file that could not be moved and is gone now frees its name for another one.
        self._taken &= seen.keys()
        self._unreadable &= seen.keys()
        settled = [
            path for path, state in seen.items() if self._seen.get(path) == state and path not in self._taken
        ]
        self._seen = seen
        return sorted(settled, key=event_in_name)

    def kept(self) -> int:
        """Return the number of recordings in ``sent/``."""
        return sum(1 for _ in self._aside.sent())

    def done(self, recording: Recording) -> None:
        """The recording is in the spool."""
        self._move(recording, SENT)
        self.make_room()

    def reject(self, recording: Recording, reason: str) -> None:
        """Move a recording that cannot be encoded to ``rejected/``."""
        self.rejected += 1
        self.rejection = reason.removeprefix(f"{recording.path}: ")
        self._log("rejected", event=recording.event, reason=reason)
        if place := self._move(recording, REJECTED):
            # On a full disk the reason is only in the log. A name need not be UTF-8.
            with contextlib.suppress(OSError):
                place.with_suffix(".txt").write_text(
                    reason + "\n", encoding="utf-8", errors="backslashreplace"
                )
        self.make_room()

    def make_room(self) -> None:
        """Delete the oldest files of ``sent/`` while the disk has too little free space."""
        if removed := self._aside.make_room():
            self._log("removed", recordings=removed, folder=str(self._folder / SENT))

    def _move(self, recording: Recording, to: str) -> Path | None:
        path = recording.path
        try:
            place = self._aside.move(path, to)
        except OSError as error:
            # Keep the file in the set of returned ones, or it would be recorded again and again.
            reason = (
                f"{path}: cannot be moved to {to}/ ({error.strerror}); make the folder writable, with room"
            )
            self._log("not_moved", event=recording.event, reason=reason)
            return None
        self._seen.pop(path, None)
        self._taken.discard(path)
        return place
