"""Who comes to the centre's door and is not let in: counted from what ZeroMQ says of its connections.

A connection without an allowed key, with another centre's, or that says nothing, never gets as far as a message,
so it is seen here alone.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter

import zmq

from firmware_py.runtime.log import Log

# (Never EVENT_HANDSHAKE_FAILED_PROTOCOL: to watch for it keeps libzmq 4.3.5 from closing the connection. Nor
# EVENT_ACCEPT_FAILED: with no file left they come without end.)
WATCHED_EVENTS: dict[int, str] = {
    zmq.EVENT_ACCEPTED: "connections",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "admitted",
    zmq.EVENT_DISCONNECTED: "disconnected",
}
# Counted at once, so that a crowd does not keep the receiver from its records. (When some 2,000 wait to be counted,
# ZeroMQ's own thread stands still until there is room: so the crowd is let in no faster than it is counted.)
EVENTS_AT_ONCE = 256
# Who comes in vain comes again and again: it is said this often.
REPORT_S = 10.0


class Connections:
    """Of one ROUTER, from before it is bound; belongs on the thread that receives.

    Adds to ``counts``: ``connections`` that came, those ``admitted`` with an allowed key, ``disconnected``, and
    ``auth_rejected``, which came and were not admitted (a handshake that is still going on is one of them).
    """

    def __init__(self, router: zmq.Socket, counts: Counter[str], log: Log) -> None:
        self._router = router
        self._counts = counts
        self._log = log
        self._reported = 0
        self._report_at_s = 0.0
        self._monitor = router.get_monitor_socket(sum(WATCHED_EVENTS))

    def follow(self) -> None:
        """Count what has happened since."""
        for _ in range(EVENTS_AT_ONCE):
            if not self._monitor.poll(0):
                break
            event = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
            if what := WATCHED_EVENTS.get(event):
                self._counts[what] += 1
        self._counts["auth_rejected"] = self._counts["connections"] - self._counts["admitted"]
        self._report()

    def _report(self) -> None:
        auth_rejected = self._counts["auth_rejected"]
        if auth_rejected > self._reported and time.monotonic() >= self._report_at_s:
            self._report_at_s = time.monotonic() + REPORT_S
            self._reported = auth_rejected
            self._log.write(
                "auth_rejected",
                connections=auth_rejected,
                reason="no allowed key, another centre's, or none shown",
            )

    def close(self) -> None:
        """Before the ROUTER is closed."""
        # ZeroMQ's thread may be waiting for room for an event, with the lock that disabling waits for: make room.
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
        self._router.disable_monitor()
        self._monitor.close(0)


def allow_many_connections() -> None:
    """Let this process open as many files as the system allows it; by default it is 1,024, one a connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
