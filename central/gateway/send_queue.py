"""Queue answers for one line, which may be slower than the centre."""

from __future__ import annotations

from collections.abc import Callable

from firmware_py.links.port import Port
from firmware_py.links.stream import Pace
from firmware_py.protocol import packet

# Maximum queue size; answers beyond it are dropped, and the device asks again.
MAX_BYTES = 1 << 16
# Maximum acknowledgements per record; a frame of 210 bytes at most.
MAX_GROUP = 32
# The next answer starts when this much of the last one is still on the line; keeps the line busy.
LEAD_S = 0.05


class SendQueue:
    """Send queue with priority for acknowledgements.

    Waiting acknowledgements leave first, grouped into one record. Other answers follow in order. ``frame`` turns a
    record's bytes into a frame. An answer that is already queued is not added again, so a device that repeats its
    question cannot fill a slow line with copies.
    """

    def __init__(self, frame: Callable[[bytes], bytes], bytes_per_s: float) -> None:
        self._frame = frame
        self._pace = Pace(bytes_per_s)
        # (survey, device, boot) -> sequences in order of arrival
        self._acknowledged: dict[tuple[int, int, int], dict[int, None]] = {}
        self._others: dict[bytes, None] = {}
        self._waiting_bytes = 0
        # Bytes being sent. The initial zero ends any partial frame that the other side received before.
        self._leaving = bytearray(b"\0")

    def add(self, answer: bytes) -> bool:
        """Add a record's bytes; return False if the queue is full."""
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
        """Return the seconds until ``write`` has work, or None if nothing is queued."""
        if self._leaving:
            return 0.0
        return max(self._pace.waiting_s() - LEAD_S, 0.0) if self._waiting_bytes else None

    def write(self, port: Port) -> int:
        """Write as much as the line takes now.

        Returns:
            Number of bytes written.

        Raises:
            PortError: The port is gone.
        """
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
    """Return True if the record only lists committed sequences, so that grouping it loses nothing."""
    _, *more = packet.acknowledged_sequences(record)
    return packet.encode_record(packet.acknowledge(record, more)) == data
