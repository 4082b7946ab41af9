"""Link over a byte stream, serial or TCP: records framed by COBS and authenticated (``framing``,
``frame_authenticator``).
"""

from __future__ import annotations

import random
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from firmware_py.links.base import LinkError, LinkStatistics
from firmware_py.links.port import Port, PortError
from firmware_py.protocol.framing import Deframer, encode_frame

RETRY_MIN_S = 1.0
RETRY_MAX_S = 30.0
# Maximum send queue on the line, seconds; lets an answer arrive before the record is repeated. The spool holds the
# rest.
QUEUE_S = 0.5
FAST_LINE_BYTES_PER_S = 1 << 20


class FrameAuthenticator(Protocol):
    """``firmware_py.protocol.frame_authenticator.Crc`` or ``Mac``."""

    def close(self, record_bytes: bytes) -> bytes: ...

    def open(self, data: bytes) -> bytes: ...


class Backoff:
    """Exponential back-off: 1 s, 2 s ... 30 s, each less a random part so that devices do not retry in step."""

    def __init__(self) -> None:
        self._wait_s = RETRY_MIN_S
        self._due_s = 0.0

    def due_in_s(self) -> float:
        return max(self._due_s - time.monotonic(), 0.0)

    def failed(self) -> None:
        self._due_s = time.monotonic() + self._wait_s * random.uniform(0.75, 1.0)
        self._wait_s = min(2 * self._wait_s, RETRY_MAX_S)

    def succeeded(self) -> None:
        self._wait_s = RETRY_MIN_S


class Pace:
    """Estimate of the bytes still on the line, from its speed (``bytes_per_s``).

    A driver knows its own queue, but not what an adapter or a pseudo-terminal has buffered beyond it.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def wrote(self, n_bytes: int) -> None:
        self._free_s = max(self._free_s, time.monotonic()) + n_bytes / self._bytes_per_s

    def waiting_s(self) -> float:
        """Return the seconds until all bytes have left."""
        return max(self._free_s - time.monotonic(), 0.0)

    def waiting_bytes(self) -> float:
        return self.waiting_s() * self._bytes_per_s


def _wait(port: Port, writing: bool, left_s: float) -> bool:
    """Wait until ``port`` is readable, or writable if wanted; return True if it is readable or closed."""
    # Not select(), which rejects file descriptors from 1,024 on.
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN | (select.POLLOUT if writing else 0))
    return any(happened & ~select.POLLOUT for _, happened in poll.poll(left_s * 1000))


class StreamLink:
    """``Link`` over the port that ``open_port`` opens; reopened with back-off whenever it is lost.

    ``send_seal`` seals records to the centre, ``receive_seal`` verifies those from it. ``bytes_per_s`` is the line's
    speed.
    """

    def __init__(
        self,
        open_port: Callable[[], Port],
        send_seal: FrameAuthenticator,
        receive_seal: FrameAuthenticator,
        bytes_per_s: float = FAST_LINE_BYTES_PER_S,
    ) -> None:
        self._open_port = open_port
        self._send_seal = send_seal
        self._receive_seal = receive_seal
        self._bytes_per_s = bytes_per_s
        self._pace = Pace(bytes_per_s)
        self._port: Port | None = None
        self._backoff = Backoff()
        self._connected = False
        self._out = bytearray()
        self._arrived: deque[bytes] = deque()
        self._deframer = Deframer(receive_seal.open)
        self._closed = False
        self.statistics = LinkStatistics()

    def send(self, record: bytes) -> bool:
        self._refuse_if_closed()
        port = self._opened()
        if port is None or not self._flush():
            return False
        # An empty queue accepts any record, however long it takes on the line.
        waiting = len(self._out) + max(port.waiting_bytes(), self._pace.waiting_bytes())
        frame = encode_frame(record, self._send_seal)
        if waiting and waiting + len(frame) > QUEUE_S * self._bytes_per_s:
            return False
        self._out += frame
        self.statistics.records_sent += 1
        self.statistics.bytes_sent += len(frame)
        self._flush()
        return True

    def receive(self, timeout_s: float) -> bytes | None:
        self._refuse_if_closed()
        deadline_s = time.monotonic() + timeout_s
        while not self._arrived:
            left_s = max(deadline_s - time.monotonic(), 0.0)
            port = self._opened()
            if port is None:
                if not left_s:
                    return None
                time.sleep(min(left_s, max(self._backoff.due_in_s(), 0.001)))
                continue
            readable = _wait(port, bool(self._out), left_s)
            if (not self._flush() or not self._read(readable)) and not left_s:
                return None
            if not self._arrived and time.monotonic() >= deadline_s:
                return None
        self.statistics.records_received += 1
        return self._arrived.popleft()

    def close(self) -> None:
        self._closed = True
        if self._port:
            self._port.close()
            self._port = None

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LinkError("link: closed; open another")

    def _opened(self) -> Port | None:
        """Return the port, opened now if an attempt is due; None while it is down."""
        if self._port is None and not self._backoff.due_in_s():
            try:
                self._port = self._open_port()
            except PortError as error:
                self._lose(error)
            else:
                self._connected = False
                # Ends any partial frame that the other side received before.
                self._out = bytearray(b"\0")
                self._pace = Pace(self._bytes_per_s)
                self._deframer = Deframer(self._receive_seal.open)
        return self._port

    def _flush(self) -> bool:
        """Write what the line takes; return False if that failed."""
        if self._port is None:
            return False
        try:
            while self._out and (written := self._port.write(self._out)):
                del self._out[:written]
                # Only now is the connection known to be open: TCP reports it with the first byte accepted.
                self.statistics.connections += not self._connected
                self._connected = True
                self._pace.wrote(written)
        except PortError as error:
            self._lose(error)
            return False
        return True

    def _read(self, readable: bool) -> bool:
        if self._port is None:
            return False
        try:
            data = self._port.read() if readable else b""
        except PortError as error:
            self._lose(error)
            return False
        if data:
            self._backoff.succeeded()
            self.statistics.fault = ""
            self.statistics.bytes_received += len(data)
            before = self._deframer.damaged_frames + self._deframer.unauthentic_frames
            self._arrived.extend(self._deframer.feed(data))
            after = self._deframer.damaged_frames + self._deframer.unauthentic_frames
            self.statistics.damaged += after - before
        return True

    def _lose(self, error: PortError) -> None:
        self.statistics.fault = str(error)
        self._backoff.failed()
        if self._port:
            self._port.close()
            self._port = None
