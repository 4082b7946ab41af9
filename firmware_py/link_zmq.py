"""A link over ZeroMQ: DEALER on the device, ROUTER at the centre, one record a message.

ZeroMQ's defaults queue without bound and report nothing (DESIGN section 5); here the queue is short, a
send to a peer that is not connected is refused at once, and the spool keeps what matters.

What is counted is ZMTP 3.1 (RFC 37) as it leaves TCP's payload, each way:

    a connection   64 (greeting) + a frame of READY with Socket-Type and an empty Identity
    a record       flags (1) + length (1 up to 255, else 8) + record; no delimiter, no routing id: a DEALER
                   sends neither, and the ROUTER keeps the device's id to itself
    with CURVE     33 more in each record's body; HELLO and INITIATE, or WELCOME and READY, a connection

Not counted, as it cannot be seen from here: heartbeats (9 + 7 bytes each way every 5 s), and TCP and IP.
"""

from __future__ import annotations

import zmq

from firmware_py.keys import CurveKeys
from firmware_py.link import LinkError, LinkStatistics

HIGH_WATER_MARK = 32
HEARTBEAT_MS = 5_000
RECONNECT_MAX_MS = 30_000
LINGER_MS = 500
MAX_MESSAGE_BYTES = 1 << 20
GREETING_BYTES = 64
# CurveZMQ (RFC 26)
# around each body: the command's name, a nonce, the box's authenticator, the frame's flags.
MESSAGE_BYTES = 8 + 8 + 16 + 1
# The device's first commands are HELLO and INITIATE, the centre's WELCOME and READY; of INITIATE and READY
# this is what comes before their properties.
HELLO_BYTES, INITIATE_BYTES = 200, 257
WELCOME_BYTES, READY_BYTES = 168, 30


def frame_bytes(body: int) -> int:
    """Bytes of one ZMTP 3.1 frame (RFC 37): flags, length (1 byte up to 255, else 8), body."""
    return body + (2 if body <= 255 else 9)


def handshake_bytes(socket_type: str, curve: bool = False) -> int:
    """Bytes one side, DEALER or ROUTER, sends to open a ZMTP connection: greeting and commands."""

    def prop(name: str, value: int) -> int:
        return 1 + len(name) + 4 + value

    properties = prop("Socket-Type", len(socket_type)) + prop("Identity", 0)
    if not curve:
        return GREETING_BYTES + frame_bytes(1 + len("READY") + properties)
    first, second = (HELLO_BYTES, INITIATE_BYTES) if socket_type == "DEALER" else (WELCOME_BYTES, READY_BYTES)
    return GREETING_BYTES + frame_bytes(first) + frame_bytes(second + properties)


class ZmqLink:
    """``Link`` over ZeroMQ, encrypted and authenticated with ``curve``.

    The connection gets its routing id from the centre: one that a peer chose could be another's.
    """

    def __init__(self, endpoint: str, curve: CurveKeys | None = None) -> None:
        self.statistics = LinkStatistics()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
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
        if curve:
            self._socket.curve_serverkey = curve.server
            self._socket.curve_publickey = curve.public
            self._socket.curve_secretkey = curve.secret
        self._curve = curve is not None
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(
                f"link: cannot use endpoint {endpoint!r} ({error}); expected tcp://host:port"
            ) from None

    def send(self, record: bytes) -> bool:
        self._refuse_if_closed()
        try:
            self._socket.send(record, zmq.DONTWAIT)
        except zmq.Again:
            return False
        self.statistics.records_sent += 1
        self.statistics.bytes_sent += self._wire_bytes(record)
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        self._refuse_if_closed()
        if not self._socket.poll(int(timeout_s * 1000)):
            self._count_handshakes()
            return None
        parts = self._socket.recv_multipart()
        self.statistics.records_received += 1
        self.statistics.bytes_received += sum(self._wire_bytes(part) for part in parts)
        return parts[-1]

    def _wire_bytes(self, body: bytes) -> int:
        return frame_bytes(len(body) + (MESSAGE_BYTES if self._curve else 0))

    def _count_handshakes(self) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
            self.statistics.bytes_sent += handshake_bytes("DEALER", self._curve)
            self.statistics.bytes_received += handshake_bytes("ROUTER", self._curve)

    def _refuse_if_closed(self) -> None:
        if self._socket.closed:
            raise LinkError("link: closed; open another")

    def close(self) -> None:
        if self._socket.closed:
            return
        self._count_handshakes()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()
