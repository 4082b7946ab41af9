"""Connect one byte stream (a serial port or a TCP connection) to the centre.

A line stores nothing. It forwards a record if its seal is valid. The device keeps the record until the centre's
acknowledgement arrives, and sends it again if anything in between is lost.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

import zmq

from central.gateway.send_queue import SendQueue
from central.security.keys import KeyRing
from firmware_py.links.port import Port
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac, SealError, UnauthenticError
from firmware_py.protocol.framing import Deframer, encode_frame
from firmware_py.runtime.log import Log

POLL_S = 0.2
# Interval between log lines of changed counters, seconds.
REPORT_S = 10.0


class FrameAuthenticators:
    """Frame authenticators of all devices: MACs from the key folder, or plain checksums if ``keys`` is None."""

    def __init__(self, keys: KeyRing | None) -> None:
        self._keys = keys
        self._crc = Crc()

    def open(self, data: bytes) -> bytes:
        """Verify a device's frame and return the record's bytes.

        Raises:
            SealError: The seal is not valid.
        """
        if self._keys is None:
            return self._crc.open(data)
        try:
            record = packet.decode_record(data[: -Mac.size])
        except packet.PacketError as error:
            raise SealError(str(error)) from None
        # The secret belongs to the device that the record names; no other device's secret opens the frame.
        secret = self._keys.secret(record.survey, record.device)
        if secret is None:
            raise UnauthenticError(f"survey {record.survey}, device {record.device} has no MAC secret here")
        return Mac(secret, UPLINK).open(data)

    def frame(self, record_bytes: bytes) -> bytes:
        """Return the frame of a record for a device; empty if the device's key was revoked."""
        if self._keys is None:
            return encode_frame(record_bytes, self._crc)
        record = packet.decode_record(record_bytes)
        secret = self._keys.secret(record.survey, record.device)
        return encode_frame(record_bytes, Mac(secret, DOWNLINK)) if secret else b""


class CountLog:
    """Counters that are logged every ``REPORT_S`` if they have changed."""

    def __init__(self, log: Log, what: str, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._log, self._what, self._name = log, what, name
        self._reported: Counter[str] = Counter()
        self._report_at_s = 0.0

    def feed(self, deframer: Deframer, data: bytes) -> list[bytes]:
        """Return the records that ``data`` completes; count damaged frames and frames with a wrong MAC."""
        self.counts["bytes_received"] += len(data)
        before = (deframer.damaged_frames, deframer.unauthentic_frames)
        records = deframer.feed(data)
        self.counts["damaged"] += deframer.damaged_frames - before[0]
        self.counts["unauthentic"] += deframer.unauthentic_frames - before[1]
        return records

    def report(self, now: bool = False) -> None:
        """Log the counters if the interval has passed; with ``now``, log any change at once."""
        due = now or time.monotonic() >= self._report_at_s
        if due and self.counts != self._reported:
            self._reported = self.counts.copy()
            self._report_at_s = time.monotonic() + REPORT_S
            self._log.write(self._what, name=self._name, **self.counts)


class SerialSession:
    """Session on one open port, with its own link ``upstream`` to the centre.

    ``last_seen_s`` is the monotonic time of the last valid record.
    """

    def __init__(
        self,
        name: str,
        seals: FrameAuthenticators,
        upstream: ZmqLink,
        log: Log,
        bytes_per_s: float = math.inf,
    ) -> None:
        self.name = name
        self.last_seen_s = time.monotonic()
        self._counted = CountLog(log, "line", name)
        self.counts = self._counted.counts
        self._seals = seals
        self.upstream = upstream
        self._bytes_per_s = bytes_per_s

    def serve(
        self,
        port: Port,
        stopping: Callable[[], bool],
        deframer: Deframer | None = None,
        first: Iterable[bytes] = (),
    ) -> None:
        """Forward records and answers until ``stopping`` is set.

        ``deframer`` continues the stream of an earlier reader of this port, which has already found the records
        ``first``.

        Raises:
            PortError: The port is gone.
        """
        deframer = deframer or Deframer(self._seals.open)
        send_queue = SendQueue(self._seals.frame, self._bytes_per_s)
        try:
            self._hand_on(first)
            while not stopping():
                wait_s = send_queue.wait_s()
                poller = zmq.Poller()
                poller.register(port.fileno(), zmq.POLLIN | (zmq.POLLOUT if wait_s == 0.0 else 0))
                poller.register(self.upstream.socket, zmq.POLLIN)
                ready = dict(poller.poll(math.ceil(1000 * min(wait_s or POLL_S, POLL_S))))
                if ready.get(port.fileno(), 0) & ~zmq.POLLOUT:
                    self._hand_on(self._counted.feed(deframer, port.read()))
                self._take_answers(send_queue)
                self.counts["bytes_sent"] += send_queue.write(port)
                self._counted.report()
        finally:
            self._counted.report(now=True)

    def _hand_on(self, records: Iterable[bytes]) -> None:
        for record in records:
            self.last_seen_s = time.monotonic()
            self.counts["records" if self.upstream.send(record) else "not_handed_on"] += 1

    def _take_answers(self, send_queue: SendQueue) -> None:
        # Poll even when nothing waits: a link notices a lost connection only when it is asked.
        while (answer := self.upstream.receive(0.0)) is not None:
            self.counts["answers" if send_queue.add(answer) else "answers_unread"] += 1
