"""Hold new TCP connections until they send an authenticated record.

Waiting connections are cheap, bounded in number, and time out after a few seconds. One thread holds all of them. When
none is free, the address with the most connections loses its oldest one. Silent or unauthenticated connections
therefore cannot keep out a genuine device.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from central.errors import CentralError
from central.file_descriptors import within_limit
from central.gateway.sessions import CountLog
from firmware_py.links.port import PortError, TcpPort, split_endpoint
from firmware_py.protocol.framing import MAX_FRAME_BYTES, Deframer
from firmware_py.runtime.log import Log

# Limit on waiting connections: 1 / WAITING_SHARE of the file descriptors, at most MAX_WAITING.
MAX_WAITING = 256
WAITING_SHARE = 4
AUTHENTIC_WITHIN_S = 10.0
# Buffer limit: the largest record behind part of another.
MAX_FIRST_BYTES = 2 * MAX_FRAME_BYTES
BACKLOG = 256
# Connections accepted per pass, before pending ones are read again.
ACCEPT_AT_ONCE = 32
POLL_S = 0.2


class ListenError(CentralError, OSError):
    """Cannot bind to the endpoint."""


@dataclass
class PendingConnection:
    """Unauthenticated connection from ``address``, accepted at ``came_s``."""

    name: str
    address: str
    port: TcpPort
    deframer: Deframer
    came_s: float
    received_bytes: int = 0


class TcpListener:
    """Listener on ``endpoint`` (host:port); ``open_seal`` verifies the frames of allowed devices."""

    def __init__(self, endpoint: str, open_seal: Callable[[bytes], bytes], log: Log) -> None:
        host, number = split_endpoint(endpoint)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, number), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ListenError(
                f"{endpoint}: cannot listen there ({error.strerror}); expected host:port of this machine"
            ) from None
        self._listener.setblocking(False)
        self.endpoint = _name(host, self._listener.getsockname()[1])
        self._open_seal = open_seal
        self._counted = CountLog(log, "listener", self.endpoint)
        self.counts = self._counted.counts
        # Oldest first.
        self._waiting: dict[TcpPort, PendingConnection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def run(
        self, stopping: Callable[[], bool], admit: Callable[[PendingConnection, list[bytes]], None]
    ) -> None:
        """Listen until ``stopping`` is set; ``admit`` takes over a connection with its first valid records."""
        try:
            while not stopping():
                ready = self._selector.select(POLL_S)
                for key, _ in ready:
                    if pending := key.data:
                        self._hear(pending, admit)
                if any(key.data is None for key, _ in ready):
                    self._accept()
                self._send_away_the_silent()
                self._counted.report()
        finally:
            self.close()

    def close(self) -> None:
        for pending in list(self._waiting.values()):
            self._close(pending, "closed")
        self._selector.close()
        self._listener.close()
        self._counted.report(now=True)

    def _accept(self) -> None:
        for n in range(ACCEPT_AT_ONCE):
            try:
                connection, (address, number, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # The peer reset the connection, or the process is out of file descriptors. The system reports the
                # latter even without a new connection, so only the first failure counts as one.
                if n == 0:
                    self.counts["not_accepted"] += 1
                    if self._waiting:
                        self._make_room()
                    else:
                        # No connection can be evicted. Pause, since the waiting peer keeps the socket readable.
                        time.sleep(POLL_S)
                return
            self.counts["connections"] += 1
            if len(self._waiting) >= within_limit(MAX_WAITING, WAITING_SHARE):
                self._make_room()
            name = _name(address, number)
            try:
                port = TcpPort(connection, name)
            except OSError:
                connection.close()
                self.counts["left"] += 1
                continue
            pending = PendingConnection(name, address, port, Deframer(self._open_seal), time.monotonic())
            self._waiting[port] = pending
            self._selector.register(port, selectors.EVENT_READ, pending)

    def _make_room(self) -> None:
        counted = Counter(pending.address for pending in self._waiting.values())
        # Not ``most_common``: it imports a module, which fails when no file descriptor is free.
        most = max(counted, key=lambda address: counted[address])
        oldest = next(pending for pending in self._waiting.values() if pending.address == most)
        self._close(oldest, "evicted")

    def _hear(
        self, pending: PendingConnection, admit: Callable[[PendingConnection, list[bytes]], None]
    ) -> None:
        try:
            data = pending.port.read()
        except PortError:
            self._close(pending, "left")
            return
        pending.received_bytes += len(data)
        if records := self._counted.feed(pending.deframer, data):
            self._forget(pending)
            self.counts["admitted"] += 1
            admit(pending, records)
        elif pending.received_bytes > MAX_FIRST_BYTES:
            self._close(pending, "oversized")

    def _send_away_the_silent(self) -> None:
        now_s = time.monotonic()
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if now_s - oldest.came_s < AUTHENTIC_WITHIN_S:
                return
            self._close(oldest, "timed_out")

    def _close(self, pending: PendingConnection, why: str) -> None:
        self._forget(pending)
        pending.port.close()
        self.counts[why] += 1

    def _forget(self, pending: PendingConnection) -> None:
        self._selector.unregister(pending.port)
        del self._waiting[pending.port]


def _name(address: str, number: int) -> str:
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
