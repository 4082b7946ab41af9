"""What was received, on the disk before anything is acknowledged; idempotent on (survey, device, boot, sequence)."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from central.storage.database import connect, reported, transaction
from firmware_py.protocol.packet import Record
from firmware_py.runtime.log import Log

_LAST_ID = (1 << 63) - 1


@dataclass(frozen=True)
class JournalEntry:
    """A latent in the journal; ``id`` grows in the order of arrival."""

    id: int
    survey: int
    event: int
    model_hash: bytes
    device: int
    boot: int
    sequence: int
    sample_time_us: int
    received_us: int
    wire_bytes: int
    payload: bytes

    @property
    def sampled_us(self) -> int:
        """When it was recorded; when it arrived, of a device that had no clock yet."""
        return self.sample_time_us or self.received_us

    @property
    def key(self) -> tuple[int, int, bytes]:
        """The event it belongs to: (survey, event, model hash). Models never mix."""
        return (self.survey, self.event, self.model_hash)

    @property
    def order(self) -> tuple[int, int]:
        """Place in its device's own order, whatever order the link delivered in."""
        return (self.boot, self.sequence)


@dataclass(frozen=True)
class CommitResult:
    """What became of a group: the ``new`` ones, and by place in the group those in ``conflict``.

    A conflict has the number of a record that is there already and another content: two devices under
    one number, or one that lost its count. The journal keeps what it has.
    """

    new: list[JournalEntry]
    conflicts: set[int]


_COUNT_IN_BOOT = """
INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us, model_hash, changed)
VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
    records = records + excluded.records,
    changed = max(changed, excluded.changed),
    sample_time_us = iif(excluded.highest > highest, excluded.sample_time_us, sample_time_us),
    received_us = iif(excluded.highest > highest, excluded.received_us, received_us),
    model_hash = iif(excluded.highest > highest, excluded.model_hash, model_hash),
    highest = max(highest, excluded.highest)
"""

_COLUMNS = (
    "id, survey, event, model_hash, device, boot, sequence, sample_time_us, received_us, wire_bytes, payload"
)
# What a record's checksum is of, but for the payload: all its columns but the id.
_CHECKED = struct.Struct("<HI8sHIIQQI")
# Latents of an event that are read at once; a device with a stuck event number makes any number.
FEW = 256


class Journal:
    """One thread's view of the journal."""

    def __init__(self, data_dir: Path, log: Log | None = None) -> None:
        """``log`` is told of records that are damaged: they are left out."""
        self._database = connect(data_dir, create=True)
        self._log = log
        # Id of the last record that was read last, whole or damaged; None where there was none.
        self.read_through: int | None = None

    def commit(self, records: Sequence[tuple[Record, int, int]]) -> CommitResult:
        """Put ``(record, received_us, wire_bytes)`` on the disk in one transaction.

        A record that is there already is left as it is. Raises ``StoreError`` (a full disk, say) with
        nothing of the group kept.
        """
        new: list[JournalEntry] = []
        conflicts: set[int] = set()
        with transaction(self._database, f"journal: cannot commit {len(records)} records"):
            for place, (record, received_us, wire_bytes) in enumerate(records):
                latent = self._insert(record, received_us, wire_bytes)
                if latent:
                    new.append(latent)
                elif not self._holds(record):
                    conflicts.add(place)
            self._count(new)
        return CommitResult(new, conflicts)

    def _count(self, new: list[JournalEntry]) -> None:
        """Once a group and boot, and in the group's transaction: what the centre knows of devices costs little."""
        counts: dict[tuple[int, int, int], tuple[int, JournalEntry]] = {}
        for latent in new:
            key = (latent.survey, latent.device, latent.boot)
            count, newest = counts.get(key, (0, latent))
            counts[key] = (count + 1, latent if latent.sequence > newest.sequence else newest)
        changed = new[-1].id if new else 0
        self._database.executemany(
            _COUNT_IN_BOOT,
            [
                (
                    *key,
                    count,
                    newest.sequence,
                    newest.sample_time_us,
                    newest.received_us,
                    newest.model_hash,
                    changed,
                )
                for key, (count, newest) in counts.items()
            ],
        )

    def _insert(self, record: Record, received_us: int, wire_bytes: int) -> JournalEntry | None:
        values = (
            record.survey,
            record.event,
            record.model_hash,
            record.device,
            record.boot,
            record.sequence,
            record.sample_time_us,
            received_us,
            wire_bytes,
            record.payload,
        )
        cursor = self._database.execute(
            f"INSERT OR IGNORE INTO record ({_COLUMNS}, checksum) VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?)",
            (*values, _checksum(values)),
        )
        return JournalEntry(cursor.lastrowid or 0, *values) if cursor.rowcount == 1 else None

    def _holds(self, record: Record) -> bool:
        """Whether the record kept under this number is this one."""
        kept = self._database.execute(
            "SELECT event, model_hash, payload FROM record"
            " WHERE survey = ? AND device = ? AND boot = ? AND sequence = ?",
            (record.survey, record.device, record.boot, record.sequence),
        ).fetchone()
        return kept == (record.event, record.model_hash, record.payload)

    def of_event(self, key: tuple[int, int, bytes]) -> list[JournalEntry]:
        """Every latent of an event, in order of arrival; without bound, so for tests and accounts only."""
        return self._read("survey = ? AND event = ? AND model_hash = ?", key)

    def latents_of(
        self, key: tuple[int, int, bytes], n_devices: int, through: int | None = None
    ) -> list[JournalEntry]:
        """An event's latents in order of arrival, those up to the id ``through`` if given.

        All of a few; of more than ``FEW`` the last to arrive and each device's newest in its own order.
        """
        of_event, last_id = "survey = ? AND event = ? AND model_hash = ? AND id <= ?", through or _LAST_ID
        few = max(FEW, 4 * n_devices)
        found = self._read(of_event, (*key, last_id), few + 1, "id DESC")
        if len(found) <= few:
            return found[::-1]
        for device in range(n_devices):
            found += self._read(
                "survey = ? AND event = ? AND model_hash = ? AND device = ? AND +id <= ?",
                (*key, device, last_id),
                1,
                "boot DESC, sequence DESC",
            )
        return sorted(set(found), key=lambda latent: latent.id)

    def newest(self) -> int:
        """The id of the latent that came last; 0 before the first."""
        with reported("journal: cannot be read"):
            return self._database.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()[0]

    def after(self, read: int, most: int) -> list[JournalEntry]:
        """Of the latents that came after the id ``read`` the first ``most``."""
        return self._read("id > ?", (read,), most)

    def undecoded(self, read: int = 0, most: int = -1) -> list[JournalEntry]:
        """Latents that came after the last map of their event was drawn: what a restart has to finish. Of those after
        the id ``read`` the first ``most``, or all."""
        return self._read(
            "id > ? AND id > coalesce((SELECT max(last_record) FROM map AS m WHERE m.survey = record.survey"
            " AND m.event = record.event AND m.model_hash = record.model_hash), 0)",
            (read,),
            most,
        )

    def _read(self, condition: str, values: tuple, most: int = -1, order: str = "id") -> list[JournalEntry]:
        with reported("journal: cannot be read"):
            rows = self._database.execute(
                f"SELECT {_COLUMNS}, checksum FROM record WHERE {condition} ORDER BY {order} LIMIT ?",
                (*values, most),
            ).fetchall()
        self.read_through = rows[-1][0] if rows else None
        return [JournalEntry(*row[:-1]) for row in rows if self._is_whole(row)]

    def _is_whole(self, row: tuple) -> bool:
        """Records from before there were checksums have none."""
        id, *values, checksum = row
        if checksum is None or checksum == _checksum(values):
            return True
        if self._log:
            self._log.write("record_damaged", id=id, survey=values[0], event=values[1], device=values[3])
        return False

    def close(self) -> None:
        self._database.close()


def damaged_records(database: sqlite3.Connection) -> Iterator[int]:
    """Ids of records whose checksum does not fit them; reads the whole journal."""
    with reported("journal: cannot be read"):
        for id, *values, checksum in database.execute(f"SELECT {_COLUMNS}, checksum FROM record"):
            if checksum is not None and checksum != _checksum(values):
                yield id


def _checksum(values: Sequence) -> int:
    """CRC-32 of a record's columns, the id aside; -1 where damage left what no column can hold."""
    try:
        return zlib.crc32(values[-1], zlib.crc32(_CHECKED.pack(*values[:-1])))
    except (struct.error, TypeError):
        return -1
