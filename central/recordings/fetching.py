"""Fetch recordings over the devices' links: the centre asks in its answers, devices send piece by piece.

The receiver's thread only collects what arrives (``handle``). All disk access is on the thread of ``watch``, which
writes once a second and verifies a part as soon as it is complete. A device is told that its part is stored only after
that, and after a restart of the centre it is asked for the bytes that are not in the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from central.config import FetchSection
from central.recordings.store import (
    ABSENT,
    COMING,
    DAY_US,
    OPEN,
    Progress,
    RecordingStore,
    Request,
)
from central.storage.database import StoreError
from central.storage.map_store import DamagedMapError
from firmware_py.protocol import packet
from firmware_py.protocol.recording_messages import (
    MAX_PIECE_BYTES,
    MAX_WAIT_S,
    End,
    Fetch,
    Message,
    NoRecording,
    Part,
    Piece,
    PieceRequest,
    Wait,
    decode_message,
    encode_message,
)
from firmware_py.runtime.log import Log, now_us

POLL_S = 1.0
# Time after a message in which a device counts as busy and is not asked again, seconds.
BUSY_S = 60.0
# Bytes of all devices that may wait in memory for the disk.
MAX_WAITING_BYTES = 16 << 20
DAY_S, HOUR_S = 86_400, 3600
Key = tuple[int, int]


@dataclass
class _Transfer:
    """Open request; ``fresh`` has arrived and is not in the database yet.

    ``restarted`` is set while pieces of an earlier description are still in the database. ``generation`` counts the
    descriptions.
    """

    request: Request
    stored_bytes: int
    fresh: bytearray
    restarted: bool = False
    generation: int = 0
    changed: bool = False
    last_seen_s: float = float("-inf")

    @property
    def done_bytes(self) -> int:
        return (0 if self.restarted else self.stored_bytes) + len(self.fresh)

    @property
    def complete(self) -> bool:
        return 0 < self.request.part_bytes <= self.done_bytes

    def update(self, **values: object) -> None:
        self.request = replace(self.request, changed_us=now_us(), **values)  # type: ignore[arg-type]
        self.changed = True


class Fetching:
    """Recordings on request, at the centre; ``watch`` needs a thread.

    ``handle`` is the receiver's handler of RECORDING records. ``requests(record)`` returns what to add to the answer to
    a hello or health record.
    """

    def __init__(
        self, data_dir: Path, section: FetchSection, log: Log, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._data_dir = data_dir
        self._section = section
        self._log = log
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._transfers: dict[Key, dict[int, _Transfer]] = {}
        # Bytes received today: in all, and not written yet.
        self._day = self._today()
        self._used: dict[Key, int] = {}
        self._unwritten: dict[Key, int] = {}

    def handle(self, record: packet.Record, wire_bytes: int) -> list[packet.Record]:
        """Return the answers to a RECORDING record (a ``receiver.Handler``)."""
        try:
            message = decode_message(record.payload)
        except packet.PacketError as error:
            self._log.write("damaged", survey=record.survey, device=record.device, reason=str(error))
            return []
        key = (record.survey, record.device)
        with self._lock:
            self._count(key, wire_bytes)
            transfer = self._transfers.get(key, {}).get(record.event)
            if transfer is None or transfer.request.sample_time_us != record.sample_time_us:
                return [_answer(record, End()), *self._next_request(record)]
            transfer.last_seen_s = time.monotonic()
            transfer.update(wire_bytes=transfer.request.wire_bytes + wire_bytes)
            if isinstance(message, NoRecording):
                transfer.restarted, transfer.fresh = True, bytearray()
                transfer.update(state=ABSENT, reason=message.reason)
                return [_answer(record, End()), *self._next_request(record)]
            if isinstance(message, Part):
                self._describe(transfer, message)
            elif isinstance(message, Piece):
                self._take(transfer, message)
            return [_answer(record, answer) for answer in self._go_on(key, transfer)]

    def requests(self, record: packet.Record) -> list[packet.Record]:
        """Return the request to attach to the answer to ``record`` (hello, health): none or one."""
        with self._lock:
            return self._next_request(record)

    def watch(self, stopping: threading.Event) -> None:
        """Write what has arrived, read new requests and apply the policy, until ``stopping`` is set."""
        with closing(RecordingStore(self._data_dir)) as store:
            ended = False
            while not ended:
                ended = stopping.is_set()
                self._wake.clear()
                try:
                    self.keep(store)
                    self.take_up(store)
                    if self._section.flagged or self._section.every:
                        self.apply_policy(store)
                except StoreError as error:
                    # Retried in the next pass.
                    self._log.write("recordings_commit_failed", reason=str(error))
                if not ended and not stopping.is_set():
                    self._wake.wait(POLL_S)

    def wake(self) -> None:
        """Let ``watch`` start its next pass at once, or notice that it is to stop."""
        self._wake.set()

    def keep(self, store: RecordingStore) -> None:
        """Write what has arrived, and verify complete parts.

        Raises:
            StoreError: The write failed; what has arrived stays in memory for the next call.
        """
        with self._lock:
            moving = [
                (one, one.generation, self._progress(one))
                for transfers in self._transfers.values()
                for one in transfers.values()
                # A complete one is not verified yet: a pass failed, or the centre was killed.
                if one.changed or one.fresh or one.complete
            ]
            for one, _, _ in moving:
                one.changed = False
            day, used, self._unwritten = self._day, self._unwritten, {}
        try:
            gone = store.advance([progress for _, _, progress in moving], used, day) if moving or used else ()
        except StoreError:
            with self._lock:
                for one, _, _ in moving:
                    one.changed = True
                for key, count in used.items():
                    self._unwritten[key] = self._unwritten.get(key, 0) + count
            raise
        complete = []
        with self._lock:
            for one, generation, progress in moving:
                request = progress.request
                if request.key in gone or request.state == ABSENT:
                    self._forget(request)
                    continue
                if one.generation == generation:
                    one.stored_bytes = progress.start + len(progress.data)
                    one.restarted = False
                    del one.fresh[: len(progress.data)]
                    if one.complete and not one.fresh:
                        complete.append(one.request)
        for request in complete:
            finished = store.finish(request)
            self._log.write(
                "recording",
                survey=request.survey,
                event=request.event,
                device=request.device,
                state=finished.state,
                bytes=finished.part_bytes,
                reason=finished.reason,
            )
            with self._lock:
                self._forget(request)

    def take_up(self, store: RecordingStore) -> None:
        """Read the open requests, and forget those that were dropped. Raises ``StoreError``."""
        found = {request.key: request for request in store.requests(only_open=True)}
        today = self._today()
        used = store.used_bytes(today)
        with self._lock:
            if self._day == today:
                # Bytes in the database, and bytes not written yet.
                self._used = {
                    key: used.get(key, 0) + self._unwritten.get(key, 0)
                    for key in used.keys() | self._unwritten
                }
            for transfers in list(self._transfers.values()):
                for one in list(transfers.values()):
                    kept = found.get(one.request.key)
                    if not one.changed and (kept is None or kept.asked_us != one.request.asked_us):
                        self._forget(one.request)
            for request in found.values():
                transfers = self._transfers.setdefault((request.survey, request.device), {})
                if request.event not in transfers:
                    transfers[request.event] = _Transfer(request, request.stored_bytes, bytearray())

    def apply_policy(self, store: RecordingStore) -> None:
        """Ask for the recordings of new events that [fetch] names; an event whose map is damaged is left out.

        Raises:
            StoreError: The database cannot be read or written.
        """
        last, seen = store.last_map(), store.seen_map()
        if seen is None:
            # The policy covers future events, not the archive.
            store.see_map(last)
            return
        if last <= seen:
            return
        for survey, event, asked_by in store.new_events(
            seen, last, self._section.every, self._section.flagged
        ):
            try:
                asked = store.ask(event, survey, asked_by=asked_by, misfit_ppm=self._section.misfit_ppm)
            except DamagedMapError as error:
                self._log.write("recordings_not_asked", survey=survey, event=event, reason=str(error))
                continue
            self._log.write("recordings_asked", survey=survey, event=event, devices=len(asked), by=asked_by)
        store.see_map(last)

    @staticmethod
    def _progress(one: _Transfer) -> Progress:
        start = 0 if one.restarted else one.stored_bytes
        return Progress(one.request, one.restarted, start, bytes(one.fresh))

    def _describe(self, transfer: _Transfer, part: Part) -> None:
        if part.sha256 == transfer.request.sha256:
            return
        # Earlier pieces are useless: the device has coded the recording again, with another version or setting.
        transfer.restarted = transfer.stored_bytes > 0 or bool(transfer.request.sha256)
        transfer.fresh = bytearray()
        transfer.generation += 1
        transfer.update(state=COMING, sha256=part.sha256, part_bytes=part.part_bytes)

    @staticmethod
    def _take(transfer: _Transfer, piece: Piece) -> None:
        done, request = transfer.done_bytes, transfer.request
        fits = piece.offset == done and done + len(piece.data) <= request.part_bytes
        if piece.sha256 == request.sha256 and fits:
            transfer.fresh += piece.data

    def _go_on(self, key: Key, transfer: _Transfer) -> list[Message]:
        """Return the messages that tell the device what to send next."""
        request = transfer.request
        if transfer.complete:
            # The device gets End when the part is verified and on the disk.
            self._wake.set()
            return [Wait(1)]
        if not request.sha256:
            return [Fetch(request.misfit_ppm)]
        if (
            sum(len(one.fresh) for all_ in self._transfers.values() for one in all_.values())
            > MAX_WAITING_BYTES
        ):
            self._wake.set()
            return [Wait(1)]
        if wait_s := self._closed_for_s(key):
            return [Wait(min(wait_s, MAX_WAIT_S))]
        length = min(MAX_PIECE_BYTES, request.part_bytes - transfer.done_bytes)
        return [PieceRequest(request.sha256, transfer.done_bytes, length)]

    def _next_request(self, record: packet.Record) -> list[packet.Record]:
        key = (record.survey, record.device)
        open_ = [
            one
            for one in self._transfers.get(key, {}).values()
            if one.request.state in OPEN and not one.complete
        ]
        if not open_ or self._closed_for_s(key):
            return []
        # One recording at a time, the oldest request first.
        first = min(open_, key=lambda one: (one.request.asked_us, one.request.event))
        if time.monotonic() - first.last_seen_s < BUSY_S and record.type != packet.RECORDING:
            return []
        return [_answer(record, Fetch(first.request.misfit_ppm), first.request)]

    def _closed_for_s(self, key: Key) -> int:
        """Return the seconds until the budget allows more of this device; 0 if it does now."""
        now = datetime.fromtimestamp(self._clock_s(), UTC)
        second = now.hour * HOUR_S + now.minute * 60 + now.second
        first, last = (HOUR_S * hour for hour in self._section.hours_utc)
        inside = first == last or (
            first <= second < last if first < last else second >= first or second < last
        )
        if not inside:
            return (first - second) % DAY_S
        if self._used.get(key, 0) >= self._section.bytes_per_day and self._day == self._today():
            return DAY_S - second
        return 0

    def _count(self, key: Key, wire_bytes: int) -> None:
        if (today := self._today()) != self._day:
            self._day, self._used = today, {}
        self._used[key] = self._used.get(key, 0) + wire_bytes
        self._unwritten[key] = self._unwritten.get(key, 0) + wire_bytes

    def _today(self) -> int:
        return int(self._clock_s() * 1e6) // DAY_US

    def _forget(self, request: Request) -> None:
        self._transfers.get((request.survey, request.device), {}).pop(request.event, None)


def _answer(record: packet.Record, message: Message, request: Request | None = None) -> packet.Record:
    """Return ``message`` for the sender of ``record``, about the recording of ``request``, or that of ``record``."""
    about = request or record
    return packet.Record(
        packet.RECORDING,
        record.device,
        record.survey,
        record.boot,
        record.sequence,
        about.event,
        about.sample_time_us,
        payload=encode_message(message),
    )
