"""Ask devices for records that they say were acknowledged and that the store has lost.

Devices keep their newest acknowledged records for this (``firmware_py/storage/spool.py``). A range is asked for until
the device's health shows that it has handled it. Records that the device no longer has are not asked for again.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field
from typing import Any

from central.fleet.device_views import lost_ranges
from central.ingest.traffic import Key
from firmware_py.protocol.health_messages import MAX_RANGES, Health, Range
from firmware_py.runtime.log import Log

# Settled ranges remembered per device; beyond them the oldest may be asked for once more.
MAX_SETTLED = 1000


@dataclass
class _Device:
    """Requests to one device: ``wanted`` ranges, ``asked`` those of the last answer, ``counts`` at that time."""

    wanted: list[Range] = field(default_factory=list)
    asked: list[Range] = field(default_factory=list)
    counts: tuple[int, int] = (0, 0)
    settled: list[Range] = field(default_factory=list)


class LostRecords:
    """Requests to all devices. ``find`` reads the database on one thread, ``answer`` runs on the receiver's."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._devices: dict[Key, _Device] = {}

    def find(self, database: sqlite3.Connection, key: Key, status: dict[str, Any]) -> None:
        """Look for lost records of a device after its health ``status``; SQLite errors propagate."""
        if status.get("resent") is None:
            # The device keeps no acknowledged records; a microcontroller, for example.
            return
        found = lost_ranges(database, key, status)
        with self._lock:
            if found or key in self._devices:
                device = self._devices.setdefault(key, _Device())
                device.wanted = [one for one in found if not _is_within(one, device.settled)][:MAX_RANGES]

    def answer(self, key: Key, health: Health) -> list[Range]:
        """Return the ranges to ask for in the answer to ``health``."""
        counts = (health.resent or 0, health.not_kept or 0)
        with self._lock:
            device = self._devices.get(key)
            if device is None or health.resent is None:
                return []
            if device.asked and counts != device.counts:
                self._settle(key, device, counts)
            if device.wanted and device.wanted != device.asked:
                records = sum(last - first + 1 for _, first, last in device.wanted)
                self._log.write("asked_again", survey=key[0], device=key[1], records=records)
            device.asked, device.counts = device.wanted, counts
            return device.asked

    def forget(self, key: Key) -> None:
        with self._lock:
            self._devices.pop(key, None)

    def _settle(self, key: Key, device: _Device, counts: tuple[int, int]) -> None:
        """Note that the device has handled the ranges that were last asked for."""
        device.settled = (device.settled + device.asked)[-MAX_SETTLED:]
        device.wanted = [one for one in device.wanted if not _is_within(one, device.settled)]
        device.asked = []
        # After a restart the device counts from 0.
        before = device.counts if counts >= device.counts else (0, 0)
        self._log.write(
            "sent_again",
            survey=key[0],
            device=key[1],
            resent=counts[0] - before[0],
            not_kept=counts[1] - before[1],
        )


def _is_within(one: Range, ranges: list[Range]) -> bool:
    boot, first, last = one
    return any(boot == other[0] and other[1] <= first and last <= other[2] for other in ranges)
