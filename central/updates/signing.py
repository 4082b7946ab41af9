"""Sign bundles for updates over the link. The secret key stays with the person who releases models."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey

from central.errors import CentralError
from firmware_py.inference.bundle import MANIFEST, load_bundle
from firmware_py.updates.archive import (
    KEY_BYTES,
    LENGTH,
    MAGIC,
    MAX_FILES_BYTES,
    ArchiveError,
    File,
    Statement,
)

SECRET_NAME = "signing.secret"
PUBLIC_NAME = "signing.public"
# Files of a bundle that no update carries.
C_SOURCES = (".c", ".h")


class SigningError(CentralError, ValueError):
    """The signing key is missing, damaged, readable by others, or exists already."""


def new_signing_key(folder: Path) -> tuple[Path, Path]:
    """Create a key pair in ``folder``; the secret file has mode 0600.

    Returns:
        The files (public, secret).

    Raises:
        SigningError: A key exists already. Devices trust it, so it is never replaced.
    """
    secret_path, public_path = folder / SECRET_NAME, folder / PUBLIC_NAME
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = SigningKey.generate()
    try:
        with os.fdopen(os.open(secret_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.encode(HexEncoder) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise SigningError(
            f"{secret_path}: already exists; devices trust it, so it is not replaced"
        ) from None
    public_path.write_bytes(key.verify_key.encode(HexEncoder) + b"\n")
    return public_path, secret_path


def read_signing_key(path: Path) -> SigningKey:
    """Read the secret key in ``path``.

    Raises:
        SigningError: The file is not a key, or other users may read it.
    """
    try:
        exposed = path.stat().st_mode & 0o077
        key = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise SigningError(
            f"{path}: cannot be read ({error.strerror}); make a signing key with: epic keys new --signing"
        ) from None
    except ValueError:
        exposed, key = 0, b""
    if exposed:
        raise SigningError(f"{path}: others may read it; run: chmod 600 {path}")
    if len(key) != KEY_BYTES:
        raise SigningError(f"{path}: expected a secret signing key of 64 hex digits; restore it")
    return SigningKey(key)


def sign_bundle(
    folder: Path,
    key: SigningKey,
    version: int,
    boards: Sequence[str] = (),
    created: str | None = None,
) -> bytes:
    """Sign the bundle in ``folder`` and return the archive (``firmware_py.updates.archive``).

    Args:
        boards: Boards the update is for; empty for any board.
        created: Time of signing (ISO 8601), now by default. With a fixed time the archive is reproducible.

    Raises:
        BundleError: The bundle is damaged.
        ArchiveError: The bundle is too large to send.
    """
    bundle = load_bundle(folder)
    files = {name: (folder / name).read_bytes() for name in sorted(bundle.manifest["files"])}
    manifest = (folder / MANIFEST).read_bytes()
    if sources := [name for name in files if name.endswith(C_SOURCES)]:
        # They are for firmware that links its model in: no device that takes updates reads them.
        files = {name: content for name, content in files.items() if name not in sources}
        kept = {name: entry for name, entry in bundle.manifest["files"].items() if name in files}
        manifest = (json.dumps({**bundle.manifest, "files": kept}, indent=2) + "\n").encode()
    contents = {MANIFEST: manifest, **files}
    total = sum(map(len, contents.values()))
    if total > MAX_FILES_BYTES:
        raise ArchiveError(
            f"{folder}: {total} bytes, an update carries at most {MAX_FILES_BYTES}; leave files out of it"
        )
    statement = Statement(
        bundle.name,
        bundle.model_hash,
        version,
        created or datetime.now(UTC).isoformat(timespec="seconds"),
        tuple(boards),
        tuple(
            File(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        ),
    ).encode()
    signature = key.sign(statement).signature
    return b"".join([MAGIC, LENGTH.pack(len(statement)), statement, signature, *contents.values()])
