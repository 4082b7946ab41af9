"""Authenticate peers with CURVE, and check the key of every message.

ZeroMQ asks (ZAP, RFC 27) only while a connection opens. A right that is revoked later is therefore checked here:
every message carries the public key it was authenticated with (User-Id), and the key is looked up each time.
"""

from __future__ import annotations

import time
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from central.security.keys import Identity, KeyRing, read_centre
from firmware_py.runtime.log import Log

# In-process peers have no key; they are the centre's own threads.
OWN_THREAD = Identity("the centre")


class CurveAuthenticator:
    """Admit peers whose public key is in the key folder.

    Raises:
        KeysError: The key folder is incomplete.
    """

    def __init__(self, keys_dir: Path, log: Log | None = None) -> None:
        self._public_key, self._secret_key = read_centre(keys_dir)
        self.keys = KeyRing(keys_dir, log)
        self._authenticator: ThreadAuthenticator | None = None
        # Monotonic time until which a public key is not admitted.
        self._suspended: dict[bytes, float] = {}

    def protect(self, socket: zmq.Socket, context: zmq.Context) -> None:
        """Make ``socket`` a CURVE server; before it is bound."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=self)
        socket.curve_server = True
        socket.curve_publickey = self._public_key
        socket.curve_secretkey = self._secret_key

    def callback(self, domain: str, key: bytes) -> bool:
        """Answer ZAP when a connection opens (pyzmq fixes the name); ``key`` is Z85."""
        if time.monotonic() < self._suspended.get(key, 0.0):
            return False
        return self.keys.identity(key) is not None

    @staticmethod
    def public_key(frame: zmq.Frame) -> bytes:
        """Return the public key (Z85) that sent ``frame``; empty for the centre's own threads."""
        try:
            return str(frame.get("User-Id")).encode()
        except zmq.ZMQError:
            return b""

    def sender(self, key: bytes) -> Identity | None:
        """Return the sender with the public key ``key``, or None if it is no longer allowed."""
        return self.keys.identity(key) if key else OWN_THREAD

    def suspend(self, key: bytes, seconds: float) -> None:
        """Admit no new connection of ``key`` for a while."""
        self._suspended[key] = time.monotonic() + seconds

    def knows(self, sender: Identity, survey: int, device: int) -> bool:
        """Return True if the device that ``sender`` speaks for is itself allowed.

        A remote gateway checks MACs against a copy of the key folder; this check enforces revocations made here.
        """
        return sender.device is not None or self.keys.secret(survey, device) is not None

    def close(self) -> None:
        """Stop answering; before the context is terminated."""
        if self._authenticator:
            self._authenticator.stop()
