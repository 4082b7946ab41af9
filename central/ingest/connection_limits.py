"""Bound the memory and the file descriptors that the connections of one ROUTER can take.

ZeroMQ keeps the parts of an unfinished message without bound: MAXMSGSIZE limits one part, RCVHWM counts whole messages.
The kernel counts the bytes that a connection received (TCP_INFO). Less those that the receiver got, they are in
ZeroMQ's memory. A connection that has too many there is shut down, and ZeroMQ frees them.

TCP only: the centre's ipc socket is open to users of this machine alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from central.file_descriptors import within_limit
from firmware_py.runtime.log import Log

# Bytes in ZeroMQ's memory of one connection: a full queue (RCVHWM) of the largest records.
MAX_UNDELIVERED_BYTES = 4 << 20
# Bytes in ZeroMQ's memory of all connections together.
MAX_TOTAL_BYTES = 64 << 20
# Allowance for heartbeats, which are never delivered.
HEARTBEAT_BYTES_PER_S = 64
# Connections of one key. A device has one, a remote gateway one per line; dead ones may look alive for a while.
DEVICE_CONNECTIONS = 16
GATEWAY_CONNECTIONS = 320
# Limit on connections without a delivered message: 1 / UNPROVEN_SHARE of the file descriptors, at most MAX_UNPROVEN.
UNPROVEN_SHARE = 4
MAX_UNPROVEN = 4096
# Interval of checks, seconds. At 300 MB/s, which CURVE's cipher allows, 15 MB arrive meanwhile.
CHECK_S = 0.05
# Largest share of the receiver's time for checks; with many connections they are less frequent.
CHECK_SHARE = 0.05
# ``tcpi_bytes_received`` in Linux's ``struct tcp_info``.
_RECEIVED = struct.Struct("@128xQ")
_INFO = ctypes.create_string_buffer(_RECEIVED.size)
_INFO_SIZE = ctypes.c_uint32(_RECEIVED.size)
_getsockopt = ctypes.CDLL(None).getsockopt
_UNREAD = struct.Struct("@i")
REPORT_S = 10.0
_Name = TypeVar("_Name", str, bytes)


class Key(NamedTuple):
    """Public key of a peer, and how many connections it may have."""

    text: bytes
    connections: int


@dataclass(eq=False)
class _Peer:
    """A connection by ZeroMQ's file descriptor and its inode; a later user of the descriptor has another inode.

    Of the received bytes, ``base_bytes`` were delivered or are allowed. ``undelivered_bytes`` is from the last check.
    """

    fd: int
    inode: int
    address: str
    key: Key | None = None
    proven: bool = False
    base_bytes: int = 0
    undelivered_bytes: int = 0
    # True if it has delivered a message since ``base_bytes`` was last set to all received bytes.
    delivering: bool = False
    ended: bool = False


@dataclass
class ConnectionLimits:
    """Limits of one ROUTER, used on the receiving thread only.

    Adds to ``counts``: ``cut_off`` (connections shut down for a limit).
    """

    counts: Counter[str]
    log: Log
    _peers: dict[int, _Peer] = field(default_factory=dict)
    # Connections without a message yet, by address, the oldest first.
    _unproven: dict[str, dict[_Peer, None]] = field(default_factory=dict)
    _n_unproven: int = 0
    _by_key: dict[bytes, dict[_Peer, None]] = field(default_factory=dict)
    # Port of the ROUTER's endpoint, identifies its connections; 0 before it is bound, and for ipc.
    _port: int = 0
    _checked_s: float = 0.0
    _check_at_s: float = 0.0
    _report_at_s: float = 0.0
    _reported: int = 0
    _reason: str = ""

    def listen_at(self, endpoint: str) -> None:
        """Set the endpoint that the ROUTER is bound to."""
        if endpoint.startswith("tcp://"):
            self._port = int(endpoint.rpartition(":")[2])

    def accepted(self, fd: int) -> None:
        """Note a connection that ZeroMQ accepted, unless it has ended meanwhile."""
        self._find(fd)
        if self._n_unproven > within_limit(MAX_UNPROVEN, UNPROVEN_SHARE):
            busiest = max(self._unproven.values(), key=len)
            self._end(next(iter(busiest)), "too many connections without a message")

    def disconnected(self, fd: int) -> None:
        """Note the end of a connection."""
        if peer := self._peers.pop(fd, None):
            self._forget(peer)

    def delivered(self, fd: int, wire_bytes: int, key: Key | None) -> None:
        """Note a message that ZeroMQ delivered, from the owner of ``key`` (None without keys)."""
        peer = self._peers.get(fd) or self._find(fd)
        if peer is None:
            return
        peer.base_bytes += wire_bytes
        peer.delivering = True
        if not peer.proven:
            peer.proven = True
            self._forget(peer)
        if key and peer.key is None:
            peer.key = key
            own = self._by_key.setdefault(key.text, {})
            own[peer] = None
            if len(own) > key.connections:
                self._end(next(iter(own)), f"more than {key.connections} connections of one key")

    def cut_off(self, fd: int, reason: str) -> None:
        """Shut a connection down."""
        if peer := self._find(fd):
            self._end(peer, reason)

    def cut_off_keys(self, is_allowed: Callable[[bytes], bool]) -> int:
        """Shut down the connections of keys that are not allowed any more; return how many keys had one."""
        gone = [text for text in self._by_key if not is_allowed(text)]
        for text in gone:
            for peer in list(self._by_key[text]):
                self._end(peer, "a key that is no longer allowed")
        return len(gone)

    def check(self, emptied: bool) -> None:
        """Shut down the connections that have too many bytes in ZeroMQ's memory.

        Args:
            emptied: True if the receiver has just taken all whole messages that waited.
        """
        started_s = time.monotonic()
        if started_s >= self._check_at_s:
            allowed = int(HEARTBEAT_BYTES_PER_S * min(started_s - self._checked_s, 1.0))
            peers = list(self._peers.values())
            total = sum(self._measure(peer, allowed, emptied) for peer in peers)
            if total > MAX_UNDELIVERED_BYTES:
                for peer in sorted(peers, key=lambda one: -one.undelivered_bytes):
                    if peer.undelivered_bytes <= MAX_UNDELIVERED_BYTES and total <= MAX_TOTAL_BYTES:
                        break
                    total -= peer.undelivered_bytes
                    self._end(peer, "messages without end")
            self._checked_s = time.monotonic()
            took_s = self._checked_s - started_s
            self._check_at_s = self._checked_s + max(CHECK_S, took_s / CHECK_SHARE)
        self._report()

    def _find(self, fd: int) -> _Peer | None:
        """Return the connection at ``fd``, known or new; None if it has ended or is not this ROUTER's."""
        with contextlib.suppress(OSError), _borrowed(fd) as connection:
            if self._port_of(connection) != self._port:
                return None
            inode = os.fstat(fd).st_ino
            known = self._peers.get(fd)
            if known and known.inode == inode:
                return known
            address = connection.getpeername()[0]
            self.disconnected(fd)
            peer = self._peers[fd] = _Peer(fd, inode, address)
            self._unproven.setdefault(address, {})[peer] = None
            self._n_unproven += 1
            return peer
        return None

    @staticmethod
    def _port_of(connection: socket.socket) -> int:
        return (
            int(connection.getsockname()[1]) if connection.family in (socket.AF_INET, socket.AF_INET6) else 0
        )

    def _measure(self, peer: _Peer, allowed: int, emptied: bool) -> int:
        """Return the bytes of ``peer`` in ZeroMQ's memory; 0 for one that has ended or been shut down."""
        peer.undelivered_bytes = 0
        # By C, which is four times as fast. At worst another socket's count is read; ``_end`` compares the inode.
        if peer.ended or _getsockopt(
            peer.fd, socket.IPPROTO_TCP, socket.TCP_INFO, _INFO, ctypes.byref(_INFO_SIZE)
        ):
            return 0
        (received,) = _RECEIVED.unpack(_INFO)
        if received - peer.base_bytes > MAX_UNDELIVERED_BYTES:
            # The kernel itself bounds the bytes that it still holds.
            with contextlib.suppress(OSError):
                received -= _UNREAD.unpack(fcntl.ioctl(peer.fd, termios.FIONREAD, bytes(_UNREAD.size)))[0]
        if emptied and peer.delivering:
            # All whole messages were delivered; the rest belongs to an unfinished one.
            peer.delivering = False
            peer.base_bytes = received
        peer.base_bytes += allowed
        peer.undelivered_bytes = max(received - peer.base_bytes, 0)
        return peer.undelivered_bytes

    def _end(self, peer: _Peer, reason: str) -> None:
        self._forget(peer)
        peer.ended = True
        peer.undelivered_bytes = 0
        with contextlib.suppress(OSError), _borrowed(peer.fd) as connection:
            if os.fstat(peer.fd).st_ino == peer.inode:
                # ZeroMQ keeps the descriptor, sees the end and closes it.
                connection.shutdown(socket.SHUT_RDWR)
                self.counts["cut_off"] += 1
                self._reason = f"{reason}; the last from {peer.address}"

    def _forget(self, peer: _Peer) -> None:
        """Remove a connection from the unproven ones and from those of its key."""
        self._n_unproven -= _remove(self._unproven, peer.address, peer)
        if peer.key:
            _remove(self._by_key, peer.key.text, peer)

    def _report(self) -> None:
        if self.counts["cut_off"] > self._reported and time.monotonic() >= self._report_at_s:
            self._report_at_s = time.monotonic() + REPORT_S
            self._reported = self.counts["cut_off"]
            self.log.write("cut_off", connections=self._reported, reason=self._reason)


def _remove(lists: dict[_Name, dict[_Peer, None]], name: _Name, peer: _Peer) -> bool:
    """Remove ``peer`` from the list ``name``, and the list if it is then empty; return True if it was in it."""
    if peer not in lists.get(name, {}):
        return False
    del lists[name][peer]
    if not lists[name]:
        del lists[name]
    return True


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Use a descriptor of ZeroMQ's as a socket; it is not duplicated, because no descriptor may be free.

    ZeroMQ may close it at any moment, and every call then raises ``OSError``. Compare the inode before a change. In the
    microseconds after that, a shutdown could at worst meet the next connection.

    Raises:
        OSError: The descriptor is closed, or is no socket.
    """
    connection = socket.socket(fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()
