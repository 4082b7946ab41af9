"""Number a device's control messages, and repeat each until it is answered."""

from __future__ import annotations

from firmware_py.protocol import packet

# Wait for an answer before the first repetition, and the longest wait, in seconds. Each wait is twice the last.
RETRY_MIN_S = 2.0
RETRY_MAX_S = 60.0


class Repeater:
    """Numbers and times of the messages of one ``ControlHandler``, of which one is in flight.

    Args:
        kind: Record type.
        header: Record with this device's device, survey, boot and model hash; its boot may change.
    """

    def __init__(self, kind: int, header: packet.Record) -> None:
        self._kind = kind
        self._header = header
        self._sequence = 0
        self._due_s = float("-inf")
        self._wait_s = RETRY_MIN_S

    def is_due(self, now_s: float) -> bool:
        """Return True if the message may be sent, for the first time or again."""
        return now_s >= self._due_s

    def record(self, payload: bytes, now_s: float, event: int = 0, sample_time_us: int = 0) -> packet.Record:
        """Return the next record, which is sent now."""
        self._due_s = now_s + self._wait_s
        self._wait_s = min(2 * self._wait_s, RETRY_MAX_S)
        self._sequence += 1
        header = self._header
        return packet.Record(
            self._kind,
            header.device,
            header.survey,
            header.boot,
            self._sequence,
            event,
            sample_time_us,
            header.model_hash,
            payload,
        )

    def go_on(self, due_s: float = float("-inf")) -> None:
        """Send the next message at ``due_s``, by default now; after an answer."""
        self._due_s = due_s
        self._wait_s = RETRY_MIN_S
