"""A ZeroMQ client that may do what libzmq would not: leave a message of many parts unfinished. ZMTP 3.0, NULL or CURVE.

    zmtp.py PORT SECONDS [KEY_FOLDER] [--part-bytes N] [--parts N]

As a program it sends parts of one message until it is cut off, connects again, and so on for SECONDS; with ``--parts``
a message ends after as many. Its last line is JSON: bytes sent and how often it was cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import time
from pathlib import Path

from nacl.bindings import (
    crypto_box,
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_keypair,
    crypto_box_open,
)
from zmq.utils import z85

from firmware_py.links.keys import read_key_folder

MORE, COMMAND, LONG = 1, 4, 2
TIMEOUT_S = 10.0


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return struct.pack(">BQ", flags | LONG, len(body)) + body
    return bytes([flags, len(body)]) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


METADATA = _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")


class Client:
    """A connection whose handshake is done; with ``keys`` (a device's folder) by CURVE.

    Raises:
        OSError: The centre ended the connection.
    """

    def __init__(self, port: int, keys: Path | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._nonce = 0
        self._shared = b""
        mechanism = b"CURVE" if keys else b"NULL"
        self.socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32))
        self._receive(64)
        if keys:
            self._shake_hands(read_key_folder(keys))
        else:
            self.socket.sendall(frame(b"\x05READY" + METADATA, COMMAND))
            self._command()

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (part := self.socket.recv(size - len(data))):
                raise ConnectionResetError("the centre ended the connection")
            data += part
        return data

    def _command(self) -> bytes:
        flags, size = self._receive(2)
        if flags & LONG:
            size = int.from_bytes(bytes([size]) + self._receive(7), "big")
        return self._receive(size)

    def _count(self) -> bytes:
        self._nonce += 1
        return struct.pack(">Q", self._nonce)

    def _shake_hands(self, keys) -> None:
        server, public, secret = (z85.decode(key) for key in (keys.server, keys.public, keys.secret))
        own_public, own_secret = crypto_box_keypair()
        nonce = self._count()
        box = crypto_box(bytes(64), b"CurveZMQHELLO---" + nonce, server, own_secret)
        self.socket.sendall(frame(b"\x05HELLO\1\0" + bytes(72) + own_public + nonce + box, COMMAND))
        welcome = self._command()
        opened = crypto_box_open(welcome[24:], b"WELCOME-" + welcome[8:24], server, own_secret)
        session, cookie = opened[:32], opened[32:]
        vouch_nonce = os.urandom(16)
        vouch = crypto_box(own_public + server, b"VOUCH---" + vouch_nonce, session, secret)
        nonce = self._count()
        box = crypto_box(
            public + vouch_nonce + vouch + METADATA, b"CurveZMQINITIATE" + nonce, session, own_secret
        )
        self.socket.sendall(frame(b"\x08INITIATE" + cookie + nonce + box, COMMAND))
        if not self._command().startswith(b"\x05READY"):
            raise ConnectionRefusedError("the centre does not admit this key")
        self._shared = crypto_box_beforenm(session, own_secret)

    def encode(self, body: bytes, more: bool) -> bytes:
        """One part of a message as it goes onto the wire."""
        if not self._shared:
            return frame(body, MORE * more)
        nonce = self._count()
        box = crypto_box_afternm(bytes([MORE * more]) + body, b"CurveZMQMESSAGEC" + nonce, self._shared)
        return frame(b"\x07MESSAGE" + nonce + box)

    def send(self, body: bytes, more: bool = False) -> None:
        self.socket.sendall(self.encode(body, more))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("keys", type=Path, nargs="?")
    parser.add_argument("--part-bytes", type=int, default=1 << 16)
    parser.add_argument("--parts", type=int, default=0, help="of a message; 0 is without end")
    given = parser.parse_args()
    end_s = time.monotonic() + given.seconds
    body = os.urandom(given.part_bytes)
    sent = cut_off = 0
    batch = max(min((1 << 16) // given.part_bytes, 1000), 1)
    while time.monotonic() < end_s:
        try:
            client = Client(given.port, given.keys)
        except OSError:
            time.sleep(0.1)
            continue
        parts = 0
        try:
            while time.monotonic() < end_s:
                # Many small parts at once: their number is what costs.
                data = b"".join(
                    client.encode(body, more=not given.parts or number % given.parts != 0)
                    for number in range(parts + 1, parts + 1 + batch)
                )
                parts += batch
                client.socket.sendall(data)
                sent += len(data)
        except OSError:
            cut_off += 1
        finally:
            client.socket.close()
    print(json.dumps({"sent": sent, "cut_off": cut_off}))


if __name__ == "__main__":
    main()
