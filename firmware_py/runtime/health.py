"""Report a device's health to the centre: HELLO until answered, then HEALTH at intervals.

The answers carry the rate of latents that the centre has set, and the centre's clock. A device without a clock learns
its offset from them. It does not set the system clock: that is the operating system's task (NTP, GNSS), and sample
times must not jump during recording.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_py import __version__
from firmware_py.links.base import LinkStatistics
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import (
    Health,
    Hello,
    Range,
    decode_newest_boot,
    decode_ranges,
    decode_setting,
    encode_health,
)
from firmware_py.runtime.log import now_us

RETRY_MIN_S = 2.0
THERMAL = Path("/sys/class/thermal")
MEMORY = Path("/proc/meminfo")
BOARD = Path("/proc/device-tree/model")
# Plausible range; a reading outside it counts as no sensor.
TEMPERATURES_MC = range(-60_000, 200_000)
# Latest valid clock (year 2255); the offset to a later one would not fit into a record.
LAST_CLOCK_US = (1 << 53) - 1


def board_name() -> str:
    """Return the board's name from its firmware, or else the processor's architecture."""
    try:
        return BOARD.read_text("utf-8", "replace").strip("\0\n ") or platform.machine()
    except OSError:
        return platform.machine()


def temperature_mc() -> int | None:
    """Return the hottest zone's temperature in thousandths of a degree Celsius; None if unknown."""
    found = []
    for path in THERMAL.glob("thermal_zone*/temp"):
        try:
            value = int(path.read_text())
        except (OSError, ValueError):
            continue
        if value in TEMPERATURES_MC:
            found.append(value)
    return max(found, default=None)


def memory_free_mib() -> int | None:
    """Return the memory available to programs, in MiB."""
    try:
        for line in MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def disk_free_mib(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free >> 20
    except OSError:
        return None


@dataclass(frozen=True)
class Question:
    """Unanswered record: its number, this device's clock, and ``time.monotonic()``."""

    sequence: int
    clock_us: int
    said_s: float


@dataclass(frozen=True)
class HealthSettings:
    """How often a device sends HEALTH, and the facts about itself that it reports.

    ``spool_records`` is the capacity of the spool. The free disk space is that of ``folder``.
    """

    interval_s: int
    board: str
    spool_records: int
    folder: Path


@dataclass(frozen=True)
class CentreRequests:
    """Functions that carry out what the centre's answers ask for.

    Attributes:
        set_rate: Called with the bytes per latent that the centre has set.
        number_start: Called with the newest boot that the centre knows (0 unless this one is behind) and the centre's
            clock in microseconds. It may change the boot in the handler's header; a new HELLO announces that.
        send_again: Called with the acknowledged records that the centre lacks.
    """

    set_rate: Callable[[int], None]
    number_start: Callable[[int, int], None]
    send_again: Callable[[list[Range]], None]


class HealthHandler:
    """``ControlHandler`` for health.

    Args:
        header: Record with this device's device, survey, boot and model hash.
        settings: Interval and setup.
        link: Tells when a connection is new.
        status: Returns the ``Health`` fields of the node and the updater.
        requests: Called with what the centre asks for.
        log: Writes a log entry for each answer. `epic board install` waits for the first one.
    """

    def __init__(
        self,
        header: packet.Record,
        settings: HealthSettings,
        link: LinkStatistics,
        status: Callable[[], dict[str, Any]],
        requests: CentreRequests,
        log: Callable[..., None],
    ) -> None:
        self._header = header
        self._settings = settings
        self._link = link
        self._status = status
        self._requests = requests
        self._log = log
        self._started_s = time.monotonic()
        self._connections = link.connections
        self._known = False
        self._due_s = float("-inf")
        self._wait_s = RETRY_MIN_S
        self._sequence = 0
        self._question: Question | None = None
        self._clock_offset_us: int | None = None
        self._round_trip_us: int | None = None

    def poll(self, now_s: float) -> packet.Record | None:
        """Return HELLO until it is answered, then HEALTH at its interval."""
        if self._link.connections != self._connections:
            self._connections = self._link.connections
            self._known = False
            self._due_s = float("-inf")
            self._wait_s = RETRY_MIN_S
        if now_s < self._due_s:
            return None
        self._sequence += 1
        self._question = Question(self._sequence, now_us(), time.monotonic())
        if self._known:
            self._due_s = now_s + self._settings.interval_s
            return self._record(packet.HEALTH, self._question, self._health())
        self._due_s = now_s + min(self._wait_s, self._settings.interval_s)
        self._wait_s *= 2
        return self._record(packet.HELLO, self._question, self._hello())

    def handle(self, record: packet.Record, now_s: float) -> None:
        """Handle the centre's clock and rate, and its request for records.

        Raises:
            PacketError: A value is impossible.
        """
        question = self._question
        if record.type not in (packet.HELLO, packet.HEALTH) or question is None:
            return
        if (record.boot, record.sequence) != (self._header.boot, question.sequence):
            return
        if not 0 < record.sample_time_us <= LAST_CLOCK_US:
            raise packet.PacketError(f"the centre's clock says {record.sample_time_us} us; set it")
        latent_bytes = decode_setting(record.payload)
        ranges = decode_ranges(record.payload)
        self._question = None
        self._log("control_answered", type=record.type)
        self._round_trip_us = int((time.monotonic() - question.said_s) * 1e6)
        # Measure from the time of the question: the clock may have been set since.
        self._clock_offset_us = record.sample_time_us - (question.clock_us + self._round_trip_us // 2)
        if record.type == packet.HELLO:
            self._known = True
            self._wait_s = RETRY_MIN_S
            self._due_s = now_s
        if latent_bytes is not None:
            self._requests.set_rate(latent_bytes)
        if ranges:
            self._requests.send_again(ranges)
        self._requests.number_start(decode_newest_boot(record.payload), record.sample_time_us)
        if self._header.boot != record.boot:
            self._known = False
            self._due_s = now_s

    def close(self) -> None:
        """Do nothing: no thread and no file is open."""

    def _hello(self) -> Hello:
        status = self._status()
        return Hello(
            __version__,
            self._settings.board,
            self._settings.interval_s,
            self._settings.spool_records,
            status["waiting"],
            status.get("update_version"),
        )

    def _health(self) -> Health:
        return Health(
            interval_s=self._settings.interval_s,
            uptime_s=int(time.monotonic() - self._started_s),
            temperature_mc=temperature_mc(),
            disk_free_mib=disk_free_mib(self._settings.folder),
            memory_free_mib=memory_free_mib(),
            clock_offset_us=self._clock_offset_us,
            round_trip_us=self._round_trip_us,
            **self._status(),
        )

    def _record(self, kind: int, question: Question, message: Hello | Health) -> packet.Record:
        header = self._header
        return packet.Record(
            kind,
            header.device,
            header.survey,
            header.boot,
            question.sequence,
            sample_time_us=question.clock_us,
            model_hash=header.model_hash,
            payload=encode_health(message),
        )
