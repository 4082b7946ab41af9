"""CURVE keys of a ZeroMQ link, and what CurveZMQ (RFC 26) adds on the wire."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from firmware_py.link import LinkError

KEY_CHARACTERS = 40
# Around each body: the command's name, a nonce, the box's authenticator, the frame's flags.
MESSAGE_BYTES = 8 + 8 + 16 + 1
# The device's first commands are HELLO and INITIATE, the centre's WELCOME and READY; of INITIATE and READY
# this is what comes before their properties.
HELLO_BYTES, INITIATE_BYTES = 200, 257
WELCOME_BYTES, READY_BYTES = 168, 30


@dataclass(frozen=True)
class CurveKeys:
    """Z85 keys of 40 characters: the centre's public one, and the device's own pair."""

    server: bytes
    public: bytes
    secret: bytes


def read_curve_keys(server_key: Path, public_key: Path, secret_key: Path) -> CurveKeys:
    """Keys from files, one a file. Raises ``LinkError`` for a file that is no key, or for no pair."""
    keys = CurveKeys(read_key(server_key), read_key(public_key), read_key(secret_key))
    if zmq.curve_public(keys.secret) != keys.public:
        raise LinkError(f"{public_key}: not the public key of {secret_key}; copy the pair again")
    return keys


def read_key(path: Path) -> bytes:
    """A key from its file, Z85. Raises ``LinkError`` when it cannot be read or is none."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise LinkError(f"{path}: cannot be read ({error.strerror}); expected a CURVE key") from None
    try:
        # The decoder looks bytes up in a table and packs them: what is no Z85 fails in either.
        whole = len(key) == KEY_CHARACTERS and len(z85.decode(key)) == 32
    except (KeyError, struct.error):
        whole = False
    if not whole:
        raise LinkError(f"{path}: expected a CURVE key of {KEY_CHARACTERS} Z85 characters")
    return key
