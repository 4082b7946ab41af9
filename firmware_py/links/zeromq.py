"""A link over ZeroMQ: DEALER on the device, ROUTER at the centre, one record a message.

ZeroMQ's defaults queue without bound and report nothing. Here the queue is short, a
send to a peer that is not connected is refused at once, and the spool keeps what matters.

What is counted is ZMTP 3.1 (RFC 37) as it leaves TCP's payload, each way:

    a connection   64 (greeting) + a frame of READY with Socket-Type and an empty Identity
    a record       flags (1) + length (1 up to 255, else 8) + record; no delimiter, no routing id: a DEALER
                   sends neither, and the ROUTER keeps the device's id to itself
    with CURVE     33 more in each record's body; HELLO and INITIATE, or WELCOME and READY, a connection

Not counted, as it cannot be seen from here: heartbeats (9 + 7 bytes each way every 5 s), and TCP and IP.
"""

from __future__ import annotations

import contextlib
import sys
import time

import zmq

from firmware_py.links.base import LinkError, LinkStatistics
from firmware_py.links.keys import CurveKeys

HIGH_WATER_MARK = 32
HEARTBEAT_MS = 5_000
RECONNECT_MAX_MS = 30_000
LINGER_MS = 500
MAX_MESSAGE_BYTES = 1 << 20
GREETING_BYTES = 64
# ZeroMQ reconnects a broken connection at once and emits an event. After bytes that it cannot parse, it ends the
# session for good without an event. EVENT_HANDSHAKE_FAILED_PROTOCOL is left out: monitoring it keeps libzmq 4.3.5 from
# closing the connection.
WATCHED_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
)
REOPEN_MIN_S, REOPEN_MAX_S = 1.0, 30.0
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


def open_dealer(context: zmq.Context, curve: CurveKeys | None) -> zmq.Socket:
    """Create an unconnected DEALER with a short queue that drops nothing silently and reconnects by itself."""
    dealer = context.socket(zmq.DEALER)
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
        dealer.setsockopt(option, value)
    if curve:
        dealer.curve_serverkey = curve.server
        dealer.curve_publickey = curve.public
        dealer.curve_secretkey = curve.secret
    return dealer


class ZmqLink:
    """``Link`` over ZeroMQ, encrypted and authenticated with ``curve``.

    The connection gets its routing id from the centre: one that a peer chose could be another's. Several
    links may share a ``context``, which is then the caller's to terminate.
    """

    def __init__(
        self, endpoint: str, curve: CurveKeys | None = None, context: zmq.Context | None = None
    ) -> None:
        self.statistics = LinkStatistics()
        self._context = context or zmq.Context()
        self._owns_context = context is None
        self._endpoint = endpoint
        self._keys = curve
        # Time at which the connection was lost, until ZeroMQ reports a retry.
        self._lost_s: float | None = None
        self._reopen_s = REOPEN_MIN_S
        try:
            self._open()
        except zmq.ZMQError as error:
            if self._owns_context:
                self._context.term()
            raise self._unusable(error) from None

    @property
    def socket(self) -> zmq.Socket:
        """Socket for a poller; valid until the next ``send`` or ``receive``, which may open another one."""
        return self._socket

    def _unusable(self, error: zmq.ZMQError) -> LinkError:
        return LinkError(f"link: cannot use endpoint {self._endpoint!r} ({error}); expected tcp://host:port")

    def _open(self) -> None:
        """Raises ``zmq.ZMQError``, with nothing left open."""
        with contextlib.ExitStack() as opened:
            dealer = open_dealer(self._context, self._keys)
            opened.callback(dealer.close, 0)
            monitor = dealer.get_monitor_socket(WATCHED_EVENTS)
            opened.callback(monitor.close, 0)
            dealer.connect(self._endpoint)
            opened.pop_all()
        self._socket, self._monitor = dealer, monitor

    def send(self, record: bytes) -> bool:
        self._refuse_if_closed()
        try:
            self._socket.send(record, zmq.DONTWAIT)
        except zmq.Again:
            self._follow()
            return False
        self.statistics.records_sent += 1
        self.statistics.bytes_sent += self._wire_bytes(record)
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        self._refuse_if_closed()
        if not self._socket.poll(int(timeout_s * 1000)):
            self._follow()
            return None
        parts = self._socket.recv_multipart()
        self.statistics.records_received += 1
        self.statistics.bytes_received += sum(self._wire_bytes(part) for part in parts)
        return parts[-1]

    def _wire_bytes(self, body: bytes) -> int:
        return frame_bytes(len(body) + (MESSAGE_BYTES if self._keys else 0))

    def _follow(self) -> None:
        """Process connection events, and open a new socket if ZeroMQ has given up this one.

        Raises:
            LinkError: No new socket can be opened, for example without free file descriptors.
        """
        self._take_events()
        if self._lost_s is not None and time.monotonic() - self._lost_s > self._reopen_s:
            self._lost_s = None
            self._reopen_s = min(2 * self._reopen_s, REOPEN_MAX_S)
            self._shut(linger_ms=0)
            try:
                self._open()
            except zmq.ContextTerminated:
                raise
            except zmq.ZMQError as error:
                raise self._unusable(error) from None

    def _take_events(self) -> None:
        while self._monitor.poll(0):
            event = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
            self._lost_s = time.monotonic() if event == zmq.EVENT_DISCONNECTED else None
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                # The answer is not authenticated, so a stranger on the way could give it: say it, and go on trying.
                self.statistics.key_rejected = True
                self.statistics.fault = (
                    f"{self._endpoint}: the centre does not allow this key: it was revoked, or never allowed; allow it "
                    "there with: epic keys allow"
                )
            elif event == zmq.EVENT_DISCONNECTED and self.statistics.key_rejected:
                # The end of the rejected connection.
                continue
            elif event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.statistics.key_rejected = False
                # ZeroMQ gives no reason; a centre with another key closes the connection.
                key = ", and does it allow this key" if self._keys else ""
                self.statistics.fault = f"{self._endpoint}: no connection; is the centre there{key}?"
            else:
                self.statistics.fault = ""
                self.statistics.key_rejected = False
                self._reopen_s = REOPEN_MIN_S
                self.statistics.connections += 1
                self.statistics.bytes_sent += handshake_bytes("DEALER", self._keys is not None)
                self.statistics.bytes_received += handshake_bytes("ROUTER", self._keys is not None)

    def _refuse_if_closed(self) -> None:
        if self._socket.closed:
            raise LinkError("link: closed; open another")

    def close(self) -> None:
        if self._socket.closed:
            return
        # The context is being terminated; no more events will come.
        with contextlib.suppress(zmq.ContextTerminated):
            self._take_events()
        self._shut(LINGER_MS)
        if self._owns_context:
            self._context.term()

    def _shut(self, linger_ms: int) -> None:
        with contextlib.suppress(zmq.ContextTerminated):
            self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
