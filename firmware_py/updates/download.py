"""An update on its way: the part of the archive that has arrived, on the disk byte for byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from firmware_py.updates.archive import ArchiveError


class Download:
    """Collects the archive of ``sha256`` and ``archive_bytes`` in ``folder``, from where an earlier one ended.

    Every chunk is on the disk when ``append`` returns. Another archive's part is removed. Raises ``OSError``
    where there is no room.
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
        """Add ``data`` if it is what comes next; False for what is there already or too far on."""
        if offset != self.offset or offset + len(data) > self.archive_bytes or not data:
            return False
        with self._path.open("ab") as file:
            # What a full disk took of an earlier try.
            file.truncate(self.offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.offset += len(data)
        return True

    def read(self) -> bytes:
        """The whole archive. Raises ``ArchiveError`` when it is not the one that was on offer."""
        data = self._path.read_bytes()
        if hashlib.sha256(data).digest() != self.sha256:
            raise ArchiveError(
                f"update: the SHA-256 of what arrived is not {self.sha256.hex()[:16]}… that was on offer; "
                "roll it out again"
            )
        return data

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
