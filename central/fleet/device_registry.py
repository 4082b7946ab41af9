"""Track the state and traffic of devices, and write them to the disk once a second.

The receiver's thread only counts (``Traffic``) and answers. All disk access is on the thread of ``watch``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from central.fleet.device_views import acknowledged_lost, keep_allowed, read_allowed, read_status
from central.fleet.gaps import GapWatch
from central.fleet.lost_records import LostRecords
from central.fleet.rates import rate_of, read_rates
from central.ingest.traffic import MAX_DEVICES, Key, Traffic, TrafficCounters
from central.storage.database import StoreError, connect, reported, transaction
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, Hello, decode_health, encode_setting
from firmware_py.runtime.log import Log, now_us

POLL_S = 1.0

_ADD = """
INSERT INTO device VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
    heard_us = iif(excluded.heard_us, excluded.heard_us, heard_us),
    bytes_received = bytes_received + excluded.bytes_received,
    bytes_sent = bytes_sent + excluded.bytes_sent,
    refused = refused + excluded.refused,
    refusal = iif(excluded.refused, excluded.refusal, refusal),
    status = json_patch(iif(json_valid(status), status, '{}'), excluded.status)
"""


class DeviceRegistry:
    """Device registry; ``handle`` answers HELLO and HEALTH records, and ``watch`` needs a thread.

    The receiver counts in ``traffic``.

    Args:
        offer: Returns the update to attach to an answer, or None.
        on_health: Called with each health record.
        allowed: Returns the devices with an allowed key; None for a centre without keys.
        requests: Returns the requests for recordings to attach to an answer.
    """

    def __init__(
        self,
        data_dir: Path,
        offer: Callable[[packet.Record], packet.Record | None],
        log: Log,
        on_health: Callable[[packet.Record, Health], None] = lambda record, health: None,
        allowed: Callable[[], frozenset[Key]] | None = None,
        requests: Callable[[packet.Record], list[packet.Record]] = lambda record: [],
    ) -> None:
        """Raises ``StoreError``."""
        self._data_dir = data_dir
        self.traffic = Traffic()
        self._offer = offer
        self._on_health = on_health
        self._allowed = allowed
        self._requests = requests
        self._allowed_last: frozenset[Key] | None = None
        self._log = log
        self._lock = threading.Lock()
        self._said: dict[Key, dict[str, Any]] = {}
        # Last (boot, sequence) received; an older one is a replay or out of date.
        self._last: dict[Key, tuple[int, int]] = {}
        with closing(connect(data_dir, create=True)) as database, reported("devices: cannot be read"):
            self._rates = read_rates(database)
            for survey, device, text in database.execute("SELECT survey, device, status FROM device"):
                if "said_boot" in (status := read_status(text)):
                    self._last[survey, device] = (status["said_boot"], status["said_sequence"])
            (self._forgotten,) = database.execute("SELECT coalesce(max(id), 0) FROM forgotten").fetchone()
        # Boots that were behind and are already logged; likewise lost records.
        self._behind: dict[Key, int] = {}
        self._lost: dict[Key, int] = {}
        self._lost_records = LostRecords(log)

    def handle(self, record: packet.Record, wire_bytes: int) -> Iterable[packet.Record]:
        """Return the centre's clock, the set rate, an update offer and requests (a ``receiver.Handler``)."""
        try:
            said: Hello | Health
            if record.type == packet.HELLO:
                said = decode_health(record.payload, Hello)
            else:
                said = decode_health(record.payload, Health)
        except packet.PacketError as error:
            self._log.write("damaged", survey=record.survey, device=record.device, reason=str(error))
            return []
        key, number = (record.survey, record.device), (record.boot, record.sequence)
        with self._lock:
            last = self._last.get(key)
            if last and record.boot < last[0]:
                return self._answer_behind(record, last[0])
            if number <= last if last else len(self._last) >= MAX_DEVICES:
                return []
            self._last[key] = number
            known = self._said.setdefault(key, {})
            known.update(vars(said))
            known |= {
                "said_boot": record.boot,
                "said_sequence": record.sequence,
                "model_hash": record.model_hash.hex(),
            }
            latent_bytes = rate_of(self._rates, key) or 0
        ranges = self._lost_records.answer(key, said) if isinstance(said, Health) else []
        setting = encode_setting(latent_bytes, ranges=ranges)
        self.traffic.seen([key], now_us())
        if isinstance(said, Health):
            self._on_health(record, said)
        answer = packet.Record(
            record.type, record.device, record.survey, *number, sample_time_us=now_us(), payload=setting
        )
        # Only for devices that accept updates and are idle: an offer takes a canary's place.
        takes_update = said.update_version is not None and getattr(said, "update_state", "idle") == "idle"
        offer = self._offer(record) if takes_update else None
        return [answer, *([offer] if offer else []), *self._requests(record)]

    def _answer_behind(self, record: packet.Record, boot: int) -> list[packet.Record]:
        """Answer a boot older than the device's last: its state was lost, or the record is a replay.

        A HELLO gets the last boot, so that the device continues after it. The record's content is ignored, so a replay
        cannot restore an old state.
        """
        key = (record.survey, record.device)
        if self._behind.get(key) != record.boot:
            self._behind[key] = record.boot
            advice = (
                f"if its state was lost: epic central devices forget {record.device} --survey {record.survey}"
            )
            self._log.write(
                "boot_behind", survey=key[0], device=key[1], boot=record.boot, last_boot=boot, advice=advice
            )
        newest_boot = boot if record.type == packet.HELLO else 0
        return [
            packet.Record(
                record.type,
                record.device,
                record.survey,
                record.boot,
                record.sequence,
                sample_time_us=now_us(),
                payload=encode_setting(rate_of(self._rates, key) or 0, newest_boot),
            )
        ]

    def watch(self, stopping: threading.Event) -> None:
        """Store new counters and states, read rates and find gaps, until ``stopping`` is set."""
        with closing(connect(self._data_dir, create=True)) as database:
            gaps = GapWatch(self._log)
            ended = False
            while not ended:
                ended = stopping.wait(POLL_S)
                try:
                    self.keep(database)
                    self.take_up_rates(database)
                    self.take_up_forgotten(database)
                    self.take_up_keys()
                    gaps.look(database, now_us())
                except StoreError as error:
                    # Retried in the next pass.
                    self._log.write("devices_commit_failed", reason=str(error))

    def take_up_rates(self, database: sqlite3.Connection) -> None:
        """Read the rates that are set; answers use them from now on.

        Raises:
            StoreError: The database cannot be read.
        """
        with reported("rates: cannot be read"):
            rates = read_rates(database)
        with self._lock:
            self._rates = rates

    def take_up_keys(self) -> None:
        """Keep which devices are allowed, and log by name each whose key was revoked. Raises ``StoreError``."""
        allowed = self._allowed() if self._allowed else None
        if allowed is not None and allowed == self._allowed_last:
            return
        if allowed is None and read_allowed(self._data_dir) is None:
            return
        keep_allowed(self._data_dir, allowed)
        for survey, device in sorted((self._allowed_last or frozenset()) - (allowed or frozenset())):
            self._log.write("device_revoked", survey=survey, device=device)
        self._allowed_last = allowed

    def take_up_forgotten(self, database: sqlite3.Connection) -> None:
        """Drop the state of devices that the operator has forgotten.

        Raises:
            StoreError: The database cannot be read.
        """
        with reported("devices: cannot be read"):
            rows = database.execute(
                "SELECT id, survey, device FROM forgotten WHERE id > ? ORDER BY id", (self._forgotten,)
            ).fetchall()
        with self._lock:
            for id, *key in rows:
                self._forgotten = id
                for known in (self._last, self._behind, self._lost):
                    known.pop((key[0], key[1]), None)
                self._lost_records.forget((key[0], key[1]))

    def keep(self, database: sqlite3.Connection) -> None:
        """Write new data to the disk; after an error it is kept for the next call.

        Raises:
            StoreError: The write failed.
        """
        passed = self.traffic.take()
        with self._lock:
            said, self._said = self._said, {}
        if not passed and not said:
            return
        try:
            with transaction(database, "devices: cannot be kept"):
                database.executemany(_ADD, [_row(key, passed, said) for key in passed.keys() | said.keys()])
                lost = {key: acknowledged_lost(database, key, status) for key, status in said.items()}
                for key, status in said.items():
                    self._lost_records.find(database, key, status)
        except StoreError:
            self.traffic.put_back(passed)
            with self._lock:
                self._said = {**said, **self._said}
            raise
        for key, records in lost.items():
            if records and records != self._lost.get(key):
                self._log.write("acknowledged_lost", survey=key[0], device=key[1], records=records)
            self._lost[key] = records


def forget_device(data_dir: Path, key: Key) -> bool:
    """Delete a device's state and rate; return False if it was unknown.

    Its records, their numbers and maps stay, because the device may go on. A running centre notices within a second,
    and then treats the device as new.

    Raises:
        StoreError: The database cannot be written.
    """
    with (
        closing(connect(data_dir)) as database,
        transaction(database, f"device {key[1]} of survey {key[0]}: cannot be forgotten"),
    ):
        removed = [
            database.execute(f"DELETE FROM {table} WHERE survey = ? AND device = ?", key).rowcount
            for table in ("device", "rate")
        ]
        # A boot without records is not shown.
        removed.append(
            database.execute(
                "UPDATE device_boot SET records = 0 WHERE survey = ? AND device = ? AND records > 0", key
            ).rowcount
        )
        database.execute("INSERT INTO forgotten (survey, device) VALUES (?, ?)", key)
    return any(removed)


def _row(key: Key, passed: dict[Key, TrafficCounters], said: dict[Key, dict[str, Any]]) -> tuple:
    one = passed.get(key, TrafficCounters())
    return (
        *key,
        one.seen_us,
        one.bytes_received,
        one.bytes_sent,
        one.refused,
        one.refusal,
        json.dumps(said.get(key, {})),
    )
