"""One byte stream into the centre: a serial port or a TCP connection, and whoever speaks on it.

A line keeps nothing. A record is handed on if its seal is right, and the device holds it until the centre's
acknowledgement has come back down the line; whatever is lost in between, it sends again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import zmq

from central.keys import KeyRing
from firmware_py import packet
from firmware_py.framing import Deframer, encode_frame
from firmware_py.log import Log
from firmware_py.port import Port, PortError
from firmware_py.seal import DOWNLINK, UPLINK, Crc, Mac, SealError, UnauthenticError

POLL_MS = 200
# Answers that a device does not read are dropped beyond this; it asks again.
OUT_BYTES = 1 << 16
# Counters go to the log this often, if they have changed.
REPORT_S = 10.0


class Seals:
    """The seal of every device: MACs from the key folder, or none but a checksum (``keys`` None)."""

    def __init__(self, keys: KeyRing | None) -> None:
        self._keys = keys
        self._crc = Crc()

    def open(self, data: bytes) -> bytes:
        """Record bytes of a frame from a device. Raises ``SealError``."""
        if self._keys is None:
            return self._crc.open(data)
        try:
            record = packet.decode_record(data[: -Mac.size])
        except packet.PacketError as error:
            raise SealError(str(error)) from None
        secret = self._keys.secret(record.survey, record.device)
        if secret is None:
            raise UnauthenticError(f"survey {record.survey}, device {record.device} has no MAC secret here")
        return Mac(secret, UPLINK).open(data)

    def frame(self, record_bytes: bytes) -> bytes:
        """The frame of a record for a device; empty for one whose right was withdrawn."""
        if self._keys is None:
            return encode_frame(record_bytes, self._crc)
        record = packet.decode_record(record_bytes)
        secret = self._keys.secret(record.survey, record.device)
        return encode_frame(record_bytes, Mac(secret, DOWNLINK)) if secret else b""


class Line:
    """Serves one open port until it ends; ``upstream`` is a DEALER of this thread's own."""

    def __init__(self, name: str, seals: Seals, upstream: zmq.Socket, log: Log) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self._seals = seals
        self._upstream = upstream
        self._log = log
        self._reported: Counter[str] = Counter()
        self._report_at_s = 0.0

    def serve(
        self, port: Port, stopping: Callable[[], bool], authentic_within_s: float | None = None
    ) -> None:
        """Hand records on and answers back until ``stopping``. Raises ``PortError`` when the port is gone.

        A peer that has sent no good record ``authentic_within_s`` after it came is sent away.
        """
        deframer = Deframer(self._seals.open)
        out = bytearray(b"\0")
        opened_s = time.monotonic()
        heard = False
        try:
            while not stopping():
                poller = zmq.Poller()
                poller.register(port.fileno(), zmq.POLLIN | (zmq.POLLOUT if out else 0))
                poller.register(self._upstream, zmq.POLLIN)
                ready = dict(poller.poll(POLL_MS))
                if ready.get(port.fileno(), 0) & ~zmq.POLLOUT:
                    heard |= self._hand_on(deframer, port.read())
                if self._upstream in ready:
                    self._take_answers(out)
                if out and (written := port.write(out)):
                    del out[:written]
                    self.counts["bytes_sent"] += written
                if authentic_within_s and not heard and time.monotonic() - opened_s > authentic_within_s:
                    raise PortError(f"no good record within {authentic_within_s:.0f} s")
                self._report()
        finally:
            self._report(now=True)

    def _hand_on(self, deframer: Deframer, data: bytes) -> bool:
        self.counts["bytes_received"] += len(data)
        before = (deframer.damaged_frames, deframer.unauthentic_frames)
        records = deframer.feed(data)
        self.counts["damaged"] += deframer.damaged_frames - before[0]
        self.counts["unauthentic"] += deframer.unauthentic_frames - before[1]
        for record in records:
            try:
                self._upstream.send(record, zmq.DONTWAIT)
                self.counts["records"] += 1
            except zmq.Again:
                self.counts["centre_away"] += 1
        return bool(records)

    def _take_answers(self, out: bytearray) -> None:
        while True:
            try:
                answer = self._upstream.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            frame = self._seals.frame(answer)
            if len(out) + len(frame) <= OUT_BYTES:
                out += frame
                self.counts["answers"] += 1
            else:
                self.counts["answers_unread"] += 1

    def _report(self, now: bool = False) -> None:
        due = now or time.monotonic() >= self._report_at_s
        if due and self.counts != self._reported:
            self._reported = self.counts.copy()
            self._report_at_s = time.monotonic() + REPORT_S
            self._log.write("line", name=self.name, **self.counts)
