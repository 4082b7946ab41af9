"""Serve HTTP with bounds: a deadline for request headers, one for a peer that does not read, a cap on connections.

uvicorn has none of the three. Without them, silent connections keep other peers out and take the file descriptors that
devices need.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections import Counter
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from central.file_descriptors import within_limit
from firmware_py.links.port import split_endpoint

# Limit on a server's open connections: 1 / CONNECTIONS_SHARE of the file descriptors, at most MAX_CONNECTIONS.
MAX_CONNECTIONS = 128
CONNECTIONS_SHARE = 8
# Pause where no file descriptor is free for a connection, seconds.
NO_FILE_PAUSE_S = 0.2
# Time to receive a request's headers, from the connection or the previous response, seconds.
REQUEST_S = 10.0
# Time without a read by the peer while a response waits, seconds.
UNREAD_S = 30.0
# Time for pending requests at shutdown, seconds.
LAST_ANSWERS_S = 2


def _most_connections() -> int:
    return within_limit(MAX_CONNECTIONS, CONNECTIONS_SHARE)


class _Connections:
    """Open connections of one server, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[_Protocol, None] = {}

    def add(self, protocol: _Protocol) -> None:
        """Add a connection. Above the cap, close the oldest idle one of the busiest address, or else this one."""
        self._open[protocol] = None
        if len(self._open) <= _most_connections():
            return
        counted = Counter(one.address for one in self._open)
        idle = [one for one in self._open if not one.busy and one is not protocol]
        evicted = max(idle, key=lambda one: counted[one.address], default=protocol)
        evicted.transport.abort()
        self.discard(evicted)

    def discard(self, protocol: _Protocol) -> None:
        self._open.pop(protocol, None)


class _Protocol(H11Protocol):
    """HTTP/1.1 connection with deadlines; ``busy`` while a request is answered."""

    def __init__(self, *given: Any, bounded: _Connections, **named: Any) -> None:
        super().__init__(*given, **named)
        self._bounded = bounded
        self._request_due: asyncio.TimerHandle | None = None
        self._read_due: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        self._bounded.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._bounded.discard(self)
        for timer in (self._request_due, self._read_due):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.busy and self._request_due:
            self._request_due.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A pipelined request is being answered already.
        if not self.busy:
            self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_due = self.loop.call_later(UNREAD_S, self._reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_due:
            self._read_due.cancel()

    def _reset(self) -> None:
        """Close without waiting for the peer to read what the kernel still holds for it."""
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.transport.abort()

    def _expect_request(self) -> None:
        if self._request_due:
            self._request_due.cancel()
        self._request_due = self.loop.call_later(REQUEST_S, self.transport.abort)


class _Listener(socket.socket):
    """Listening socket that pauses while the process has no free file descriptor.

    asyncio 3.11 to 3.13 would call ``accept`` once for each place of the backlog every second, and log a traceback for
    each call.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            # The peer that waits keeps the socket readable: without a pause the loop would spin.
            time.sleep(NO_FILE_PAUSE_S)
            raise BlockingIOError from None


def bounded_server(app: ASGIApp) -> uvicorn.Server:
    """Return an HTTP server of ``app`` with this module's bounds; ``serve(sockets=...)`` runs it."""
    connections = _Connections()

    def protocol(*given: Any, **named: Any) -> _Protocol:
        return _Protocol(*given, bounded=connections, **named)

    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            # Accepted in one go: fewer than could evict a connection before its request is read.
            backlog=_most_connections() // 2,
            date_header=False,
            http=protocol,  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            log_level="critical",
            loop="asyncio",
            server_header=False,
            timeout_graceful_shutdown=LAST_ANSWERS_S,
            ws="none",
        )
    )


def listen(address: str) -> socket.socket:
    """Return a socket that listens at ``address`` (host:port). Raises ``OSError``."""
    host, port = split_endpoint(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), port), family=family) as listener:
        return _Listener(fileno=listener.detach())
