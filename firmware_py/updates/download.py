"""Store the downloaded part of an update archive on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from firmware_py.updates.archive import ArchiveError


class Download:
    """Download of the archive ``sha256`` with ``archive_bytes`` into ``folder``; resumes an earlier one.

    Every chunk is on the disk when ``append`` returns. A partial download of another archive is deleted.

    Raises:
        OSError: The disk is full or cannot be written.
    """

    def __init__(self, folder: Path, sha256: bytes, archive_bytes: int) -> None:
        self.sha256 = sha256
        self.archive_bytes = archive_bytes
        self._path = folder / f"{sha256.hex()}.part"
        for other in folder.glob("*.part"):
            if other != self._path:
                other.unlink()
        self._path.touch()
        self.offset = self._path.stat().st_size
        self.resumed = self.offset > 0

    @property
    def complete(self) -> bool:
        return self.offset >= self.archive_bytes

    def append(self, offset: int, data: bytes) -> bool:
        """Append ``data`` if it is the next chunk; return False if it is a duplicate or leaves a gap."""
        if offset != self.offset or offset + len(data) > self.archive_bytes or not data:
            return False
        with self._path.open("ab") as file:
            # Remove what an earlier write left before the disk was full.
            file.truncate(self.offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.offset += len(data)
        return True

    def read(self) -> bytes:
        """Return the complete archive.

        Raises:
            ArchiveError: Its hash differs from the offer's.
        """
        data = self._path.read_bytes()
        if hashlib.sha256(data).digest() != self.sha256:
            raise ArchiveError(
                f"update: the SHA-256 of what arrived is not {self.sha256.hex()[:16]}… that was on offer; "
                "roll it out again"
            )
        return data

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
