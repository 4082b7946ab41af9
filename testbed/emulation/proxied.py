"""One connection through the proxy: reading, delaying, dropping and writing bytes, and closing."""

from __future__ import annotations

import contextlib
import socket
import struct

from testbed.emulation.shaping import Conditions, Shaper

READ_BYTES = 1 << 14


def reset(end: socket.socket) -> None:
    """Close with RST."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class Way:
    """One direction: from ``source`` (None once closed) through ``shaper`` to the other end.

    ``hole`` is True if bytes were swallowed.
    """

    def __init__(self, source: socket.socket, conditions: Conditions, shaper: Shaper) -> None:
        self.source: socket.socket | None = source
        self.conditions = conditions
        self.shaper = shaper
        self.arrived = b""
        self.ended = self.end_told = self.hole = False

    @property
    def empty(self) -> bool:
        return not self.arrived and not len(self.shaper)


class Connection:
    """Two non-blocking sockets and the bytes in transit between them; used by one thread.

    TCP never skips bytes. A direction that swallowed bytes is therefore reset as soon as bytes can pass again. Until
    then the other end does not learn that the peer has closed.
    """

    def __init__(self, up: Way, down: Way) -> None:
        self._ways = ((up, down), (down, up))
        self.finishing = False
        self.closed = False

    @property
    def bit_errors(self) -> int:
        return sum(way.shaper.bit_errors for way, _ in self._ways)

    def readers(self, now_s: float) -> list[socket.socket]:
        return [
            way.source
            for way, _ in self._ways
            if way.source and not way.ended and (self.finishing or way.shaper.ready_s(now_s) == now_s)
        ]

    def writers(self) -> list[socket.socket]:
        return [back.source for way, back in self._ways if back.source and way.arrived]

    def wake_s(self, now_s: float) -> list[float]:
        """Return when the connection next needs service without a socket event."""
        times = []
        for way, _ in self._ways:
            due_s, ready_s = way.shaper.due_s(), way.shaper.ready_s(now_s)
            if due_s is not None and not way.arrived:
                times.append(due_s)
            if ready_s is not None and ready_s > now_s:
                times.append(ready_s)
        return times

    def move(self, readable: set[socket.socket], now_s: float) -> None:
        """Read available bytes and write those that are due; sets ``closed`` when the connection has ended."""
        for way, back in self._ways:
            if way.source in readable and not self.closed:
                self._read(way, back, now_s)
            if not self.closed:
                self._write(way, back, now_s)
        if all(way.source is None or (way.ended and way.end_told) for way, _ in self._ways):
            self.reset()

    def finish(self) -> None:
        """Close both directions with FIN; bytes in transit are lost."""
        self.finishing = True
        for way, _ in self._ways:
            way.shaper.clear()
            way.arrived = b""
            way.end_told = True
            if way.source:
                with contextlib.suppress(OSError):
                    way.source.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close both directions with RST, or without it if both ends have already closed."""
        self.closed = True
        for way, _ in self._ways:
            if way.source and way.ended:
                way.source.close()
            elif way.source:
                reset(way.source)
            way.source = None

    def _read(self, way: Way, back: Way, now_s: float) -> None:
        assert way.source
        try:
            data = way.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._lost(way)
            return
        if self.finishing:
            way.ended = not data
        elif way.conditions.swallow:
            way.hole = True
            way.shaper.push(data, now_s)
            way.ended = way.end_told = not data
        elif way.hole or back.source is None:
            self.reset()
        elif data:
            way.shaper.push(data, now_s)
        else:
            way.ended = True

    def _write(self, way: Way, back: Way, now_s: float) -> None:
        if not way.arrived:
            way.arrived = way.shaper.pop(now_s)
        if back.source is None:
            return
        try:
            if way.arrived:
                way.arrived = way.arrived[back.source.send(way.arrived) :]
            if way.ended and not way.end_told and way.empty:
                back.source.shutdown(socket.SHUT_WR)
                way.end_told = True
        except BlockingIOError:
            pass
        except OSError:
            self._lost(back)

    def _lost(self, way: Way) -> None:
        """Handle a failed source: the other end is reset, unless its bytes are being swallowed."""
        if way.conditions.swallow and not self.finishing and way.source:
            way.hole = True
            way.source.close()
            way.source = None
        else:
            self.reset()
