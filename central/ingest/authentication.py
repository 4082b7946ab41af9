"""Who stands behind a message: CURVE at the centre's door, and the key's owner for each message after.

ZeroMQ asks (ZAP, RFC 27) only while a connection opens, so a right withdrawn later is seen here: every
message carries the public key it was authenticated with (User-Id), and that is looked up each time.
"""

from __future__ import annotations

from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from central.security.keys import Identity, KeyRing, read_centre
from firmware_py.runtime.log import Log

# An in-process peer has no key: it is a thread of the centre's own.
OWN_THREAD = Identity("the centre")


class CurveAuthenticator:
    """Lets in whom the key folder allows. Raises ``KeysError`` when the folder is not whole."""

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
        """What ZAP asks when a connection opens (the name is pyzmq's); ``key`` is Z85."""
        return self.keys.identity(key) is not None

    def sender(self, frame: zmq.Frame) -> Identity | None:
        """Who sent ``frame``; None for a key that is not allowed any more."""
        try:
            user_id = frame.get("User-Id")
        except zmq.ZMQError:
            return OWN_THREAD
        return self.keys.identity(str(user_id).encode())

    def knows(self, sender: Identity, survey: int, device: int) -> bool:
        """Whether a device that ``sender`` speaks for is itself let in.

        A gateway elsewhere checks MACs by a copy of the key folder: what is withdrawn here holds all the same.
        """
        return sender.device is not None or self.keys.secret(survey, device) is not None

    def close(self) -> None:
        """Stop answering; before the context is terminated."""
        if self._authenticator:
            self._authenticator.stop()
