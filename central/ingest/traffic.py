"""Count each device's traffic in memory, for periodic writes to the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

# Maximum devices counted; an unauthenticated peer could claim 2**32 of them.
MAX_DEVICES = 10_000

Key = tuple[int, int]


@dataclass
class TrafficCounters:
    """Traffic of one device since the last ``take``.

    It holds the time of the last message, bytes on the wire, refusals and the last refusal's reason. A record that may
    be a replay adds its bytes, but does not count as a sign of life.
    """

    seen_us: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: int = 0
    refusal: str = ""


class Traffic:
    """Traffic by (survey, device); counted on the receiver's thread and taken on another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed: dict[Key, TrafficCounters] = {}

    def received(self, key: Key, wire_bytes: int) -> None:
        with self._lock:
            if passed := self._of(key):
                passed.bytes_received += wire_bytes

    def seen(self, keys: Iterable[Key], at_us: int) -> None:
        with self._lock:
            for key in keys:
                if passed := self._of(key):
                    passed.seen_us = at_us

    def sent(self, key: Key, wire_bytes: int) -> None:
        """Count bytes sent to a device that has been seen; bytes sent to an impostor are not counted."""
        with self._lock:
            if passed := self._passed.get(key):
                passed.bytes_sent += wire_bytes

    def refused(self, key: Key, reason: str, at_us: int) -> None:
        with self._lock:
            if passed := self._of(key):
                passed.seen_us = at_us
                passed.refused += 1
                passed.refusal = reason

    def _of(self, key: Key) -> TrafficCounters | None:
        passed = self._passed.get(key)
        if passed is None and len(self._passed) < MAX_DEVICES:
            passed = self._passed[key] = TrafficCounters()
        return passed

    def take(self) -> dict[Key, TrafficCounters]:
        """Return and reset the counters."""
        with self._lock:
            taken, self._passed = self._passed, {}
        return taken

    def put_back(self, taken: dict[Key, TrafficCounters]) -> None:
        """Add ``taken`` back after a failed write; it counts towards the next ``take``."""
        with self._lock:
            for key, old in taken.items():
                new = self._passed.setdefault(key, old)
                if new is not old:
                    new.seen_us = new.seen_us or old.seen_us
                    new.bytes_received += old.bytes_received
                    new.bytes_sent += old.bytes_sent
                    new.refused += old.refused
                    new.refusal = new.refusal or old.refusal
