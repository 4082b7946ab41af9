"""Both ends of each kind of link, as the conformance suite drives them."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq
from waiting import wait_until

from firmware_py.links.base import Link
from firmware_py.links.keys import CurveKeys
from firmware_py.links.port import PortError, SerialPort, TcpPort
from firmware_py.links.stream import StreamLink
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac

SECRET = bytes(range(32))


@dataclass
class Ends:
    """``near`` is the device's link, ``far`` the centre's end of the same.

    ``cut`` breaks what is between them and lets it come back; ``shout`` puts raw bytes before the near end,
    where the link is made of bytes.
    """

    near: Link
    far: Link
    cut: Callable[[], None] | None = None
    shout: Callable[[bytes], None] | None = None


class RouterEnd:
    """A ROUTER as the far ``Link``: it answers whoever spoke last."""

    def __init__(self, keys: tuple[bytes, bytes] | None) -> None:
        self._keys = keys
        self._context = zmq.Context()
        self.endpoint = "tcp://127.0.0.1:*"
        self._peer = b""
        self._bind()

    def _bind(self) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 8)
        if self._keys:
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = self._keys

        def bound() -> bool:
            # The old socket gives its port back on a thread of ZeroMQ's own.
            with contextlib.suppress(zmq.ZMQError):
                self._socket.bind(self.endpoint)
                return True
            return False

        wait_until(bound, what="the port")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def cut(self) -> None:
        self._socket.close()
        self._bind()

    def send(self, record: bytes) -> bool:
        self._socket.send_multipart([self._peer, record])
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        if not self._socket.poll(int(1000 * timeout_s)):
            return None
        self._peer, record = self._socket.recv_multipart()
        return record

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class FilePort:
    """The master side of a pseudo-terminal as a port."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        try:
            return os.read(self._descriptor, 4096)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PortError(str(error)) from None

    def write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0

    def waiting_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """The test owns the descriptor."""


@contextlib.contextmanager
def zmq_ends(curve: bool) -> Iterator[Ends]:
    centre, device = zmq.curve_keypair(), zmq.curve_keypair()
    far = RouterEnd(centre if curve else None)
    near = ZmqLink(far.endpoint, CurveKeys(centre[0], *device) if curve else None)
    try:
        yield Ends(near, far, far.cut)
    finally:
        near.close()
        far.close()


@contextlib.contextmanager
def serial_ends() -> Iterator[Ends]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    # A pseudo-terminal has no pace of its own: whatever fits its buffer is there at once.
    near = StreamLink(lambda: SerialPort(path, 115_200), Mac(SECRET, UPLINK), Mac(SECRET, DOWNLINK))
    far = StreamLink(lambda: FilePort(master), Mac(SECRET, DOWNLINK), Mac(SECRET, UPLINK))
    try:
        yield Ends(near, far, shout=lambda data: os.write(master, data))
    finally:
        near.close()
        far.close()
        os.close(slave)
        os.close(master)


@contextlib.contextmanager
def tcp_ends() -> Iterator[Ends]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    accepted: list[socket.socket] = []

    def accept() -> TcpPort:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            raise PortError("nobody yet") from None
        accepted.append(connection)
        return TcpPort(connection, "device")

    endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    near = StreamLink(lambda: TcpPort.connect(endpoint), Mac(SECRET, UPLINK), Mac(SECRET, DOWNLINK))
    far = StreamLink(accept, Mac(SECRET, DOWNLINK), Mac(SECRET, UPLINK))
    try:
        yield Ends(
            near,
            far,
            cut=lambda: accepted[-1].shutdown(socket.SHUT_RDWR),
            shout=lambda data: accepted[-1].send(data),
        )
    finally:
        near.close()
        far.close()
        listener.close()


ENDS = {
    "zmq": lambda: zmq_ends(curve=False),
    "zmq-curve": lambda: zmq_ends(curve=True),
    "serial": serial_ends,
    "tcp": tcp_ends,
}
