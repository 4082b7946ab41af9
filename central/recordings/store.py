"""Keep requests for recordings and what has arrived of them, in the centre's database.

A device's part is the concatenation of its pieces. It may be used only in state ``KEPT``, which is set after its hash
and its samples are verified. All changes are transactions, so a killed centre leaves a shorter part and never a wrong
one.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from central.storage.database import StoreError, connect, reported, transaction
from central.storage.journal import Journal
from central.storage.map_store import DamagedMapError, Store, StoredMap
from central.storage.schema import FLAGGED
from central.verification.check_inputs import latents_of_map
from firmware_py.protocol.recording_codec import CodedRecording, RecordingCodecError, decode_part
from firmware_py.runtime.log import now_us
from physics.acquisition import Acquisition

# States of a request. ASKED and COMING are open; ABSENT means that the device no longer has the recording.
ASKED, COMING, KEPT, ABSENT, FAILED = "asked", "coming", "kept", "absent", "failed"
OPEN = (ASKED, COMING)
OPERATOR, FLAGGED_EVENT, EVERY_NTH = "operator", "flagged", "every n-th"
DAY_US = 86_400_000_000

_COLUMNS = (
    "survey, event, device, state, reason, asked_by, sample_time_us, misfit_ppm, sha256, part_bytes, wire_bytes,"
    " asked_us, changed_us"
)
_KEY = "survey = ? AND event = ? AND device = ?"
_STORED = (
    "(SELECT coalesce(sum(length(data)), 0) FROM recording_piece AS piece WHERE piece.survey = recording.survey"
    " AND piece.event = recording.event AND piece.device = recording.device)"
)


class RecordingError(StoreError):
    """A recording cannot be asked for, or what is stored of it is not usable."""


@dataclass(frozen=True)
class Request:
    """Request to one device, and how far it has got.

    Attributes:
        asked_by: ``OPERATOR``, ``FLAGGED_EVENT`` or ``EVERY_NTH``.
        sample_time_us: Sample time of the latent that belongs to the recording; 0 if no latent has arrived.
        misfit_ppm: Allowed relative RMS misfit; 0 is lossless.
        sha256: Of the coded part; empty until the device has described it.
        wire_bytes: Bytes on the link of the device's messages about this recording.
        stored_bytes: Bytes of the coded part in the database.
    """

    survey: int
    event: int
    device: int
    state: str
    reason: str
    asked_by: str
    sample_time_us: int
    misfit_ppm: int
    sha256: bytes
    part_bytes: int
    wire_bytes: int
    asked_us: int
    changed_us: int
    stored_bytes: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        return self.survey, self.event, self.device


@dataclass(frozen=True)
class Progress:
    """Bytes that a pass adds to a request: ``data`` from ``start``, after deleting older pieces if ``restarted``."""

    request: Request
    restarted: bool
    start: int
    data: bytes


class RecordingStore:
    """Requests and recordings in the database; each thread needs its own store."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._database = connect(data_dir)

    def ask(
        self,
        event: int,
        survey: int | None,
        devices: Collection[int] = (),
        asked_by: str = OPERATOR,
        misfit_ppm: int = 0,
    ) -> list[Request]:
        """Ask the devices of an event, or some of them, for their recordings.

        A part that is kept or on its way stays as it is. One that was absent or failed is asked for again.

        Returns:
            The requests of the event's ``devices``, in their order.

        Raises:
            RecordingError: A device is not in the survey.
            StoreError: The event has no map, or the database cannot be written.
        """
        with closing(Store(self._data_dir)) as maps, closing(Journal(self._data_dir)) as journal:
            stored = maps.get(event, survey)
            latents = latents_of_map(stored, maps, journal)
        n_devices = len(stored.provenance["acquisition"]["device_receivers"])
        if outside := [device for device in devices if device >= n_devices]:
            raise RecordingError(
                f"event {event}: expected devices 0 to {n_devices - 1} of survey {stored.survey}, got {outside[0]}"
            )
        chosen = sorted(set(devices)) or range(n_devices)
        now = now_us()
        rows = [
            (
                *(stored.survey, event, device, ASKED, "", asked_by),
                *(
                    latents[device].sample_time_us if device in latents else 0,
                    misfit_ppm,
                    b"",
                    0,
                    0,
                    now,
                    now,
                ),
            )
            for device in chosen
        ]
        with transaction(self._database, f"event {event}: its recordings cannot be asked for"):
            self._database.executemany(
                f"INSERT INTO recording ({_COLUMNS}) VALUES ({','.join('?' * 13)}) ON CONFLICT DO UPDATE SET"
                " state = excluded.state, reason = '', asked_by = excluded.asked_by, sha256 = excluded.sha256,"
                " sample_time_us = excluded.sample_time_us, misfit_ppm = excluded.misfit_ppm, part_bytes = 0,"
                " asked_us = excluded.asked_us, changed_us = excluded.changed_us"
                f" WHERE state IN ('{ABSENT}', '{FAILED}')",
                rows,
            )
        return [one for one in self.requests(stored.survey, event) if one.device in chosen]

    def drop(self, event: int, survey: int, devices: Collection[int] = ()) -> int:
        """Delete the requests of an event and what has arrived; return how many. Raises ``StoreError``."""
        dropped = [one.key for one in self.requests(survey, event) if not devices or one.device in devices]
        with transaction(self._database, f"event {event}: its recordings cannot be deleted"):
            for table in ("recording_piece", "recording"):
                self._database.executemany(f"DELETE FROM {table} WHERE {_KEY}", dropped)
        return len(dropped)

    def requests(
        self, survey: int | None = None, event: int | None = None, only_open: bool = False
    ) -> list[Request]:
        """Return requests, oldest first. Raises ``StoreError``."""
        conditions = [f"state IN ('{ASKED}', '{COMING}')"] if only_open else []
        values = []
        for name, value in (("survey", survey), ("event", event)):
            if value is not None:
                conditions.append(f"{name} = ?")
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with reported("recordings: cannot be read"):
            rows = self._database.execute(
                f"SELECT {_COLUMNS}, {_STORED} FROM recording {where} ORDER BY asked_us, survey, event, device",
                values,
            ).fetchall()
        return [Request(*row) for row in rows]

    def used_bytes(self, day: int) -> dict[tuple[int, int], int]:
        """Return the bytes received per (survey, device) on a day since 1970. Raises ``StoreError``."""
        with reported("recordings: cannot be read"):
            rows = self._database.execute(
                "SELECT survey, device, bytes FROM recording_use WHERE day = ?", (day,)
            ).fetchall()
        return {(survey, device): used for survey, device, used in rows}

    def advance(
        self, progress: Iterable[Progress], used: dict[tuple[int, int], int], day: int
    ) -> set[tuple[int, int, int]]:
        """Write what has arrived, in one transaction.

        Args:
            used: Bytes received per (survey, device) since the last call, on ``day``.

        Returns:
            Keys of the requests that were dropped meanwhile; nothing is written for them.

        Raises:
            StoreError: The write failed; nothing is kept of it.
        """
        gone = set()
        with transaction(self._database, "recordings: cannot be kept"):
            for one in progress:
                request = one.request
                changed = self._database.execute(
                    "UPDATE recording SET state = ?, reason = ?, sha256 = ?, part_bytes = ?, wire_bytes = ?,"
                    f" changed_us = ? WHERE {_KEY} AND asked_us = ? AND state IN ('{ASKED}', '{COMING}')",
                    (
                        *(request.state, request.reason, request.sha256, request.part_bytes),
                        *(request.wire_bytes, request.changed_us, *request.key, request.asked_us),
                    ),
                ).rowcount
                if not changed:
                    gone.add(request.key)
                    continue
                if one.restarted:
                    self._database.execute(f"DELETE FROM recording_piece WHERE {_KEY}", request.key)
                if one.data:
                    self._database.execute(
                        "INSERT INTO recording_piece VALUES (?,?,?,?,?)", (*request.key, one.start, one.data)
                    )
            self._database.executemany(
                "INSERT INTO recording_use VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
                [(*key, day, count) for key, count in used.items()],
            )
            # A week of use is enough for an operator; the budget needs a day.
            self._database.execute("DELETE FROM recording_use WHERE day < ?", (day - 7,))
        return gone

    def finish(self, request: Request) -> Request:
        """Verify a part that has arrived in full; it is kept, or failed and deleted.

        A part also fails if the event's map is damaged, since the survey of the part is then unknown.

        Raises:
            StoreError: The database cannot be read or written.
        """
        try:
            with closing(Store(self._data_dir)) as maps:
                acquisition = acquisition_of(maps.get(request.event, request.survey))
            self.read(request, acquisition)
            finished = replace(request, state=KEPT, changed_us=now_us())
        except (DamagedMapError, RecordingError, RecordingCodecError) as error:
            finished = replace(request, state=FAILED, reason=str(error), changed_us=now_us())
        except StoreError:
            raise
        except Exception as error:
            # The bytes are a device's: whatever they do to the decoder fails this part and stops nothing else.
            reason = f"the part cannot be decoded ({error!r})"
            finished = replace(request, state=FAILED, reason=reason, changed_us=now_us())
        self.advance([Progress(finished, finished.state == FAILED, 0, b"")], {}, now_us() // DAY_US)
        return finished

    def read(self, request: Request, acquisition: Acquisition) -> CodedRecording:
        """Return a part whose hash, samples, shape and receivers are verified.

        Raises:
            RecordingError: It is damaged, or of another survey.
            RecordingCodecError: It is not a coded part.
        """
        with reported("recordings: cannot be read"):
            rows = self._database.execute(
                f"SELECT data FROM recording_piece WHERE {_KEY} ORDER BY start", request.key
            ).fetchall()
        data = b"".join(row[0] for row in rows)
        name = f"event {request.event}, device {request.device}"
        if hashlib.sha256(data).digest() != request.sha256:
            raise RecordingError(
                f"{name}: the recording's SHA-256 is not the one that the device gave; drop it and fetch it again"
            )
        n_sources, n_time, n_receivers = acquisition.gather_shape
        part = decode_part(data, n_sources * n_time * n_receivers)
        expected = (n_sources, n_time, len(part.receivers))
        known = set(range(n_receivers))
        if part.samples.shape != expected or not set(part.receivers) <= known:
            raise RecordingError(
                f"{name}: expected samples {expected} of receivers 0 to {n_receivers - 1}, got "
                f"{part.samples.shape} of {min(part.receivers)} to {max(part.receivers)}"
            )
        return part

    def seen_map(self) -> int | None:
        """Return the id of the last map that the policy has looked at; None before the first pass."""
        with reported("recordings: cannot be read"):
            row = self._database.execute("SELECT map FROM fetch_seen").fetchone()
        return row and row[0]

    def see_map(self, id: int) -> None:
        """Note that the policy has looked at maps up to ``id``. Raises ``StoreError``."""
        with transaction(self._database, "recordings: cannot be kept"):
            self._database.execute("INSERT OR REPLACE INTO fetch_seen VALUES (1, ?)", (id,))

    def new_events(
        self, after: int, through: int, every: int | None, flagged: bool
    ) -> list[tuple[int, int, str]]:
        """Return (survey, event, asked_by) of the policy's events among the maps ``after + 1`` to ``through``."""
        wanted = {EVERY_NTH: "event % ? = 0" if every else "", FLAGGED_EVENT: FLAGGED if flagged else ""}
        found: dict[tuple[int, int], str] = {}
        with reported("recordings: cannot be read"):
            for asked_by, condition in wanted.items():
                if condition:
                    rows = self._database.execute(
                        f"SELECT DISTINCT survey, event FROM map WHERE rowid > ? AND rowid <= ? AND {condition}",
                        (after, through, *((every,) if asked_by == EVERY_NTH else ())),
                    ).fetchall()
                    for survey, event in rows:
                        found.setdefault((survey, event), asked_by)
        return [(*key, asked_by) for key, asked_by in sorted(found.items())]

    def last_map(self) -> int:
        """Return the id of the last map, 0 without one."""
        with reported("recordings: cannot be read"):
            return self._database.execute("SELECT coalesce(max(rowid), 0) FROM map").fetchone()[0]

    def close(self) -> None:
        self._database.close()


def acquisition_of(stored: StoredMap) -> Acquisition:
    return Acquisition.from_dict(stored.provenance["acquisition"])


def damaged_recordings(database: sqlite3.Connection) -> Iterator[str]:
    """Yield the name of each kept recording whose hash does not match; reads all of them."""
    with reported("recordings: cannot be read"):
        for *key, sha256 in database.execute(
            "SELECT survey, event, device, sha256 FROM recording WHERE state = ?", (KEPT,)
        ):
            found = hashlib.sha256()
            for (data,) in database.execute(
                f"SELECT data FROM recording_piece WHERE {_KEY} ORDER BY start", key
            ):
                found.update(data)
            if found.digest() != sha256:
                survey, event, device = key
                yield f"survey {survey}, event {event}: the recording of device {device} is damaged"
