"""Pack a bundle into one signed file, for updates over a link.

    9 bytes  b"EPIC-UPD\\n"
    4 bytes  length of the statement, little-endian
    n bytes  statement, JSON
    64 bytes Ed25519 signature of the statement
    ...      the bundle's files, one after the other in the statement's order

The statement::

    {"format": "epic-update/1", "name": "...", "model_hash": "<16 hex digits>", "version": 7,
     "created": "2026-11-24T12:00:00+00:00", "boards": ["raspberry-pi-5"],
     "files": [{"name": "manifest.json", "bytes": 123, "sha256": "..."}, ...]}

An empty list of boards is any board. The statement vouches for every byte by SHA-256 and the signature for
the statement, so that a device trusts whoever holds the signing key, and neither the link nor the centre.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from firmware_py.errors import FirmwareError

MAGIC = b"EPIC-UPD\n"
FORMAT = "epic-update/1"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
LENGTH = struct.Struct("<I")
MAX_STATEMENT_BYTES = 16_384
MAX_VERSION = 0xFFFFFFFF
# Maximum archive size, ten times the project's largest encoder; a larger statement could fill the disk.
MAX_FILES_BYTES = 32 << 20


class ArchiveError(FirmwareError, ValueError):
    """The archive is damaged, is not one, or is not signed with the trusted key."""


@dataclass(frozen=True)
class File:
    """File of the bundle in the statement; ``sha256`` in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Statement:
    """Signed statement. Empty ``boards`` means any board."""

    name: str
    model_hash: bytes
    version: int
    created: str
    boards: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def files_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def is_for(self, board: str) -> bool:
        return not self.boards or board in self.boards

    def encode(self) -> bytes:
        """Return the bytes to sign; deterministic."""
        return json.dumps(
            {
                "format": FORMAT,
                "name": self.name,
                "model_hash": self.model_hash.hex(),
                "version": self.version,
                "created": self.created,
                "boards": list(self.boards),
                "files": [vars(file) for file in self.files],
            },
            separators=(",", ":"),
        ).encode()


def read_verify_key(path: Path) -> VerifyKey:
    """Read the public key in ``path``, 64 hex digits.

    Raises:
        ArchiveError: The file is not a key.
    """
    try:
        key = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise ArchiveError(
            f"{path}: cannot be read ({error.strerror}); copy the public signing key there"
        ) from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ArchiveError(f"{path}: expected a public signing key of 64 hex digits; copy it again")
    return VerifyKey(key)


def verify_statement(statement: bytes, signature: bytes, key: VerifyKey) -> Statement:
    """Verify ``signature`` and return the signed statement. Nothing is parsed before the signature is valid.

    Raises:
        ArchiveError: The signature or the statement is not valid.
    """
    try:
        key.verify(statement, signature)
    except (BadSignatureError, ValueError):
        raise ArchiveError(
            "update: the signature is not of the key that this device trusts; sign it with that key, or "
            "install the other public key on the device"
        ) from None
    return _parse(statement)


def _parse(statement: bytes) -> Statement:
    try:
        fields = json.loads(statement)
        if fields["format"] != FORMAT:
            raise ArchiveError(f"update: expected format {FORMAT}, got {fields['format']!r}; update EPIC")
        files = tuple(File(f["name"], int(f["bytes"]), str(f["sha256"])) for f in fields["files"])
        parsed = Statement(
            str(fields["name"]),
            bytes.fromhex(fields["model_hash"]),
            fields["version"],
            str(fields["created"]),
            tuple(str(board) for board in fields["boards"]),
            files,
        )
    except ArchiveError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArchiveError(f"update: the statement is not whole ({error!r}); sign the bundle again") from None
    if type(parsed.version) is not int or not 1 <= parsed.version <= MAX_VERSION:
        raise ArchiveError(
            f"update: expected a version of 1 to {MAX_VERSION}, got {parsed.version!r}; sign the bundle again"
        )
    names = [file.name for file in files]
    apart = all(isinstance(n, str) and n not in ("", ".", "..") and Path(n).name == n for n in names)
    if not apart or len(set(names)) < len(names):
        raise ArchiveError(f"update: file names {names} are not names in one folder; do not use this update")
    if min((file.bytes for file in files), default=-1) < 0 or parsed.files_bytes > MAX_FILES_BYTES:
        raise ArchiveError(
            f"update: expected files of at most {MAX_FILES_BYTES} bytes together, got {parsed.files_bytes}"
        )
    return parsed


def archive_bytes(statement: bytes, files_bytes: int) -> int:
    """Return the length in bytes of the archive with this statement and its files."""
    return len(MAGIC) + LENGTH.size + len(statement) + SIGNATURE_BYTES + files_bytes


def split_archive(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Split an archive into ``(statement, signature, files)``, without checking them.

    Raises:
        ArchiveError: The archive is too short or not one.
    """
    head = len(MAGIC) + LENGTH.size
    if data[: len(MAGIC)] != MAGIC or len(data) < head:
        raise ArchiveError(
            "update: expected an archive as `epic central rollout` makes it, got something else"
        )
    (length,) = LENGTH.unpack(data[len(MAGIC) : head])
    body = head + length + SIGNATURE_BYTES
    if length > MAX_STATEMENT_BYTES or len(data) < body:
        raise ArchiveError(f"update: a statement of {length} bytes in {len(data)}; the archive is damaged")
    return data[head : head + length], data[head + length : body], data[body:]


def unpack(data: bytes, key: VerifyKey, folder: Path) -> Statement:
    """Verify an archive and extract its files into ``folder``, which must not exist.

    Raises:
        ArchiveError: The archive is not valid; nothing was written.
    """
    statement_bytes, signature, body = split_archive(data)
    statement = verify_statement(statement_bytes, signature, key)
    if len(body) != statement.files_bytes:
        raise ArchiveError(f"update: expected {statement.files_bytes} bytes of files, got {len(body)}")
    contents: dict[str, bytes] = {}
    place = 0
    for file in statement.files:
        content = body[place : place + file.bytes]
        place += file.bytes
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            raise ArchiveError(
                f"update: SHA-256 of {file.name} is {found[:16]}…, what was signed says {file.sha256[:16]}…; "
                "the archive was changed after signing, make it again"
            )
        contents[file.name] = content
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return statement
