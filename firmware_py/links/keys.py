"""Read a device's keys, made by `epic keys new`: a CURVE pair (ZeroMQ) and a MAC secret (tcp and serial)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from firmware_py.links.base import LinkError
from firmware_py.protocol.frame_authenticator import SECRET_BYTES

KEY_CHARACTERS = 40


@dataclass(frozen=True)
class CurveKeys:
    """Z85 keys of 40 characters: the centre's public one, and the device's own pair."""

    server: bytes
    public: bytes
    secret: bytes


def read_curve_keys(server_key: Path, public_key: Path, secret_key: Path) -> CurveKeys:
    """Read the keys from files, one key per file.

    Raises:
        LinkError: A file is not a key, or the keys are not a pair.
    """
    check_private(secret_key)
    keys = CurveKeys(read_key(server_key), read_key(public_key), read_key(secret_key))
    if zmq.curve_public(keys.secret) != keys.public:
        raise LinkError(f"{public_key}: not the public key of {secret_key}; copy the pair again")
    return keys


def device_name(survey: int, device: int) -> str:
    """Return the device's name as in `epic keys`."""
    return f"device-{device}" if survey == 1 else f"survey-{survey}-device-{device}"


def read_key_folder(folder: Path) -> CurveKeys:
    """Read the keys in KEYS/NAME, made by `epic keys new NAME`.

    Raises:
        LinkError: A key is missing or not valid.
    """
    own = folder / folder.name
    return read_curve_keys(folder / "centre.public", own.with_suffix(".public"), own.with_suffix(".secret"))


def read_key(path: Path) -> bytes:
    """Read a Z85 key from its file.

    Raises:
        LinkError: The file cannot be read or is not a key.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise LinkError(f"{path}: cannot be read ({error.strerror}); expected a CURVE key") from None
    try:
        # The Z85 decoder may fail in its table lookup or in packing.
        whole = len(key) == KEY_CHARACTERS and len(z85.decode(key)) == 32
    except (KeyError, struct.error):
        whole = False
    if not whole:
        raise LinkError(f"{path}: expected a CURVE key of {KEY_CHARACTERS} Z85 characters")
    return key


def read_secret(path: Path) -> bytes:
    """Read a MAC secret of 32 bytes in hex from its file.

    Raises:
        LinkError: The file is not a secret, or other users may read it.
    """
    check_private(path)
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise LinkError(f"{path}: cannot be read ({error.strerror}); expected a MAC secret") from None
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise LinkError(f"{path}: expected {SECRET_BYTES} bytes in hex; make it with: epic keys new")
    return secret


def check_private(path: Path) -> None:
    """Raise ``LinkError`` if other users may read an existing file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if mode & 0o077:
        raise LinkError(f"{path}: others may read it; run: chmod 600 {path}")
