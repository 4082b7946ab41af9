"""Count connections and rejected peers from ZeroMQ's monitor events.

A peer without an allowed key, with another centre's key, or that sends nothing never delivers a message. Monitor
events are the only trace of it.
"""

from __future__ import annotations

import struct
import time
from collections import Counter, deque

import zmq

from central.ingest.connection_limits import ConnectionLimits
from firmware_py.runtime.log import Log

# EVENT_HANDSHAKE_FAILED_PROTOCOL is left out: monitoring it keeps libzmq 4.3.5 from closing the connection.
# EVENT_ACCEPT_FAILED is left out too: without free file descriptors it repeats endlessly.
WATCHED_EVENTS: dict[int, str] = {
    zmq.EVENT_ACCEPTED: "connections",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "admitted",
    zmq.EVENT_DISCONNECTED: "disconnected",
}
_EVENT = struct.Struct("=Hi")
# Events counted per pass; keeps a connection flood from starving the receiver. With about 2,000 uncounted events
# ZeroMQ's I/O thread blocks, so peers are accepted no faster than they are counted.
EVENTS_AT_ONCE = 256
# Minimum interval between log lines, seconds; rejected peers reconnect endlessly.
REPORT_S = 10.0
# Time until a peer that is not admitted is logged as rejected, seconds; a handshake takes milliseconds.
HANDSHAKE_S = 2.0


class Connections:
    """Connection counters of one ROUTER.

    Create it before the ROUTER is bound, and use it on the receiving thread only. It adds to ``counts``:
    ``connections`` accepted, ``admitted`` with an allowed key, ``disconnected``, and ``auth_rejected`` (accepted but
    not admitted; includes handshakes in progress). ``limits`` bounds what connections take.
    """

    def __init__(self, router: zmq.Socket, counts: Counter[str], log: Log) -> None:
        self._router = router
        self._counts = counts
        self._log = log
        self.limits = ConnectionLimits(counts, log)
        self._reported = 0
        # (Time, connections accepted until then) within the last HANDSHAKE_S, and the number accepted before.
        self._accepted: deque[tuple[float, int]] = deque()
        self._settled = 0
        self._report_at_s = 0.0
        self._monitor = router.get_monitor_socket(sum(WATCHED_EVENTS))

    def follow(self) -> None:
        """Count the events since the last call."""
        for _ in range(EVENTS_AT_ONCE):
            if not self._monitor.poll(0):
                break
            event, fd = _EVENT.unpack(self._monitor.recv_multipart()[0])
            if event == zmq.EVENT_ACCEPTED:
                self.limits.accepted(fd)
            elif event == zmq.EVENT_DISCONNECTED:
                self.limits.disconnected(fd)
            if what := WATCHED_EVENTS.get(event):
                self._counts[what] += 1
        self._counts["auth_rejected"] = self._counts["connections"] - self._counts["admitted"]
        self._report()

    def _report(self) -> None:
        now_s, accepted = time.monotonic(), self._counts["connections"]
        if accepted > (self._accepted[-1][1] if self._accepted else self._settled):
            self._accepted.append((now_s, accepted))
        while self._accepted and self._accepted[0][0] <= now_s - HANDSHAKE_S:
            self._settled = self._accepted.popleft()[1]
        rejected = self._settled - self._counts["admitted"]
        if rejected > self._reported and now_s >= self._report_at_s:
            self._report_at_s = now_s + REPORT_S
            self._reported = rejected
            self._log.write(
                "auth_rejected",
                connections=rejected,
                reason="no allowed key, another centre's, or none shown",
            )

    def close(self) -> None:
        """Stop monitoring; call it before the ROUTER is closed."""
        # Drain events first: ZeroMQ's thread may wait for queue space while it holds the lock that disabling needs.
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
        self._router.disable_monitor()
        self._monitor.close(0)
