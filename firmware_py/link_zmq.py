"""A link over ZeroMQ: DEALER on the device, ROUTER at the centre, one record a message.

ZeroMQ's defaults queue without bound and report nothing (DESIGN section 5); here the queue is short, a
send to a peer that is not connected is refused at once, and the spool keeps what matters.
"""

from __future__ import annotations

import zmq

from firmware_py.link import LinkError, LinkStatistics

HIGH_WATER_MARK = 32
HEARTBEAT_MS = 5_000
RECONNECT_MAX_MS = 30_000
LINGER_MS = 500
MAX_MESSAGE_BYTES = 1 << 20


def frame_bytes(body: int) -> int:
    """Bytes of one ZMTP 3.1 frame (RFC 37): flags, length (1 byte up to 255, else 8), body."""
    return body + (2 if body <= 255 else 9)


def handshake_bytes(socket_type: str, identity: bytes) -> int:
    """Bytes one side sends to open a ZMTP connection with the NULL mechanism: greeting and READY."""

    def prop(name: str, value: int) -> int:
        return 1 + len(name) + 4 + value

    ready = 1 + len("READY") + prop("Socket-Type", len(socket_type)) + prop("Identity", len(identity))
    return 64 + frame_bytes(ready)


class ZmqLink:
    """``Link`` over ZeroMQ; ``identity`` names the device to the centre's ROUTER."""

    def __init__(self, endpoint: str, identity: str) -> None:
        self.statistics = LinkStatistics()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.IDENTITY, identity.encode()),
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.RCVHWM, HIGH_WATER_MARK),
            (zmq.LINGER, LINGER_MS),
            (zmq.IMMEDIATE, 1),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
        ):
            self._socket.setsockopt(option, value)
        self._identity = identity.encode()
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(
                f"link: cannot use endpoint {endpoint!r} ({error}); expected tcp://host:port"
            ) from None

    def send(self, record: bytes) -> bool:
        try:
            self._socket.send(record, zmq.DONTWAIT)
        except zmq.Again:
            return False
        self.statistics.records_sent += 1
        self.statistics.bytes_sent += frame_bytes(len(record))
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        if not self._socket.poll(int(timeout_s * 1000)):
            self._count_handshakes()
            return None
        parts = self._socket.recv_multipart()
        self.statistics.records_received += 1
        self.statistics.bytes_received += sum(frame_bytes(len(part)) for part in parts)
        return parts[-1]

    def _count_handshakes(self) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
            self.statistics.bytes_sent += handshake_bytes("DEALER", self._identity)
            self.statistics.bytes_received += handshake_bytes("ROUTER", b"")

    def close(self) -> None:
        self._count_handshakes()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()
