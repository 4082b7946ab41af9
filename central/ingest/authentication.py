"""Authenticate peers with CURVE, and check the key of every message.

ZeroMQ asks (ZAP, RFC 27) only while a connection opens. A right that is revoked later is therefore checked here:
every message carries the public key it was authenticated with (User-Id), and the key is looked up each time.
"""

from __future__ import annotations

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
        self.public_key, self._secret_key = read_centre(keys_dir)
        self.keys = KeyRing(keys_dir, log)
        self._authenticator: ThreadAuthenticator | None = None

    def protect(self, socket: zmq.Socket, context: zmq.Context) -> None:
        """Make ``socket`` a CURVE server; before it is bound."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=self)
        socket.curve_server = True
        socket.curve_publickey = self.public_key
        socket.curve_secretkey = self._secret_key

    def callback(self, domain: str, key: bytes) -> bool:
        """Answer ZAP when a connection opens (pyzmq fixes the name); ``key`` is Z85."""
        return self.keys.identity(key) is not None

    def sender(self, frame: zmq.Frame) -> Identity | None:
        """Return the sender of ``frame``, or None if its key is no longer allowed."""
        try:
            user_id = frame.get("User-Id")
        except zmq.ZMQError:
            return OWN_THREAD
        return self.keys.identity(str(user_id).encode())

    def knows(self, sender: Identity, survey: int, device: int) -> bool:
        """Return True if the device that ``sender`` speaks for is itself allowed.

        A remote gateway checks MACs against a copy of the key folder; this check enforces revocations made here.
        """
        return sender.device is not None or self.keys.secret(survey, device) is not None

    def close(self) -> None:
        """Stop answering; before the context is terminated."""
        if self._authenticator:
            self._authenticator.stop()
