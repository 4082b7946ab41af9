"""Answers on their way down one line, which may be slower than the centre."""

from __future__ import annotations

from collections.abc import Callable

from firmware_py.links.port import Port
from firmware_py.links.stream import Pace
from firmware_py.protocol import packet

# What a peer does not read is dropped beyond this; it asks again.
MAX_BYTES = 1 << 16
# Acknowledgements in one record: 210 bytes of frame at most.
MAX_GROUP = 32
# The next answer is begun when so much of the last is still on the line, so that it never stands still.
LEAD_S = 0.05


class SendQueue:
    """Acknowledgements leave first, as many as wait for a device in one record; then all else, in order.

    ``frame`` makes a record's bytes a frame. An answer that waits already is not taken twice: a device that
    asks again on a slow line must not fill it with what it will hear anyway.
    """

    def __init__(self, frame: Callable[[bytes], bytes], bytes_per_s: float) -> None:
        self._frame = frame
        self._pace = Pace(bytes_per_s)
        # (survey, device, boot) -> sequences, in the order in which they came
        self._acknowledged: dict[tuple[int, int, int], dict[int, None]] = {}
        self._others: dict[bytes, None] = {}
        self._waiting_bytes = 0
        # What has begun to leave; at first a zero, which ends whatever the other side heard before.
        self._leaving = bytearray(b"\0")

    def add(self, answer: bytes) -> bool:
        """Take a record's bytes; False when there is no room for it."""
        record = packet.decode_record(answer)
        if self._waiting_bytes and self._waiting_bytes + len(answer) > MAX_BYTES:
            return False
        if record.type == packet.ACK and _only_acknowledges(record, answer):
            sequences = self._acknowledged.setdefault((record.survey, record.device, record.boot), {})
            before = len(sequences)
            sequences.update(dict.fromkeys(packet.acknowledged_sequences(record)))
            self._waiting_bytes += packet.HEADER_BYTES * (len(sequences) - before)
        elif answer not in self._others:
            self._others[answer] = None
            self._waiting_bytes += len(answer)
        return True

    def wait_s(self) -> float | None:
        """How long until ``write`` has something to do; None while nothing waits."""
        if self._leaving:
            return 0.0
        return max(self._pace.waiting_s() - LEAD_S, 0.0) if self._waiting_bytes else None

    def write(self, port: Port) -> int:
        """Move what the line takes now; returns how many bytes. Raises ``PortError``."""
        total = 0
        while self.wait_s() == 0.0:
            if not self._leaving:
                self._leaving += self._frame(self._next())
                continue
            written = port.write(self._leaving)
            if not written:
                break
            del self._leaving[:written]
            self._pace.wrote(written)
            total += written
        return total

    def _next(self) -> bytes:
        if not self._acknowledged:
            answer = next(iter(self._others))
            del self._others[answer]
            self._waiting_bytes -= len(answer)
            return answer
        key, sequences = next(iter(self._acknowledged.items()))
        group = list(sequences)[:MAX_GROUP]
        for sequence in group:
            del sequences[sequence]
        if not sequences:
            del self._acknowledged[key]
        self._waiting_bytes -= packet.HEADER_BYTES * len(group)
        survey, device, boot = key
        first = packet.Record(packet.ACK, device, survey, boot, group[0])
        return packet.encode_record(packet.acknowledge(first, group[1:]))


def _only_acknowledges(record: packet.Record, data: bytes) -> bool:
    """Whether the bytes say nothing but which sequences were committed, so that nothing is lost in a group."""
    _, *more = packet.acknowledged_sequences(record)
    return packet.encode_record(packet.acknowledge(record, more)) == data
