"""What each device sends and is sent, counted as it passes; taken from time to time and put on the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

# Whoever is believed without keys could speak for 2**32 devices.
MAX_DEVICES = 10_000

Key = tuple[int, int]


@dataclass
class TrafficCounters:
    """Of one device since it was last taken: when it was heard, bytes on the wire, refusals and why the last.

    A record that may have been played again counts its bytes, and is no word of the device.
    """

    heard_us: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: int = 0
    refusal: str = ""


class Traffic:
    """Counted on the receiver's thread, taken on another, by (survey, device)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed: dict[Key, TrafficCounters] = {}

    def received(self, key: Key, wire_bytes: int) -> None:
        with self._lock:
            if passed := self._of(key):
                passed.bytes_received += wire_bytes

    def heard(self, keys: Iterable[Key], at_us: int) -> None:
        with self._lock:
            for key in keys:
                if passed := self._of(key):
                    passed.heard_us = at_us

    def sent(self, key: Key, wire_bytes: int) -> None:
        """What goes to an impostor is not its victim's: who was not heard is not counted."""
        with self._lock:
            if passed := self._passed.get(key):
                passed.bytes_sent += wire_bytes

    def refused(self, key: Key, reason: str, at_us: int) -> None:
        with self._lock:
            if passed := self._of(key):
                passed.heard_us = at_us
                passed.refused += 1
                passed.refusal = reason

    def _of(self, key: Key) -> TrafficCounters | None:
        passed = self._passed.get(key)
        if passed is None and len(self._passed) < MAX_DEVICES:
            passed = self._passed[key] = TrafficCounters()
        return passed

    def take(self) -> dict[Key, TrafficCounters]:
        """What has passed since the last call."""
        with self._lock:
            taken, self._passed = self._passed, {}
        return taken

    def put_back(self, taken: dict[Key, TrafficCounters]) -> None:
        """``taken`` could not be kept: it counts towards the next."""
        with self._lock:
            for key, old in taken.items():
                new = self._passed.setdefault(key, old)
                if new is not old:
                    new.heard_us = new.heard_us or old.heard_us
                    new.bytes_received += old.bytes_received
                    new.bytes_sent += old.bytes_sent
                    new.refused += old.refused
                    new.refusal = new.refusal or old.refusal
