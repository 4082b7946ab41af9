"""What was received, on the disk before anything is acknowledged; idempotent on (survey, device, boot, sequence)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from central.storage.database import connect, reported, transaction
from firmware_py.protocol.packet import Record


@dataclass(frozen=True)
class Journalled:
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
class Committed:
    """What became of a group: the ``new`` ones, and by place in the group those in ``conflict``.

    A conflict has the number of a record that is there already and another content: two devices under
    one number, or one that lost its count. The journal keeps what it has.
    """

    new: list[Journalled]
    conflicts: set[int]


# Once, for a file from before device_boot: what is in the journal already.
_FILL_BOOTS = """
INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us, model_hash)
SELECT survey, device, boot, count(*), max(sequence), sample_time_us, received_us, model_hash FROM record
WHERE NOT EXISTS (SELECT 1 FROM device_boot) GROUP BY survey, device, boot
"""

_COUNT_IN_BOOT = """
INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us, model_hash)
VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
    records = records + excluded.records,
    sample_time_us = iif(excluded.highest > highest, excluded.sample_time_us, sample_time_us),
    received_us = iif(excluded.highest > highest, excluded.received_us, received_us),
    model_hash = iif(excluded.highest > highest, excluded.model_hash, model_hash),
    highest = max(highest, excluded.highest)
"""

_COLUMNS = (
    "id, survey, event, model_hash, device, boot, sequence, sample_time_us, received_us, wire_bytes, payload"
)


class Journal:
    """One thread's view of the journal."""

    def __init__(self, data_dir: Path) -> None:
        self._database = connect(data_dir, create=True)
        with reported("journal: cannot be read"):
            (filled,) = self._database.execute("SELECT EXISTS (SELECT 1 FROM device_boot)").fetchone()
        if not filled:
            # Not each time: it reads the whole journal even where there is nothing to fill.
            with transaction(self._database, "journal: cannot be brought up to date"):
                self._database.execute(_FILL_BOOTS)

    def commit(self, records: Sequence[tuple[Record, int, int]]) -> Committed:
        """Put ``(record, received_us, wire_bytes)`` on the disk in one transaction.

        A record that is there already is left as it is. Raises ``StoreError`` (a full disk, say) with
        nothing of the group kept.
        """
        new: list[Journalled] = []
        conflicts: set[int] = set()
        with transaction(self._database, f"journal: cannot commit {len(records)} records"):
            for place, (record, received_us, wire_bytes) in enumerate(records):
                latent = self._insert(record, received_us, wire_bytes)
                if latent:
                    new.append(latent)
                elif not self._holds(record):
                    conflicts.add(place)
            self._count(new)
        return Committed(new, conflicts)

    def _count(self, new: list[Journalled]) -> None:
        """Once a group and boot, and in the group's transaction: what the centre knows of devices costs little."""
        counts: dict[tuple[int, int, int], tuple[int, Journalled]] = {}
        for latent in new:
            key = (latent.survey, latent.device, latent.boot)
            count, newest = counts.get(key, (0, latent))
            counts[key] = (count + 1, latent if latent.sequence > newest.sequence else newest)
        self._database.executemany(
            _COUNT_IN_BOOT,
            [
                (*key, count, newest.sequence, newest.sample_time_us, newest.received_us, newest.model_hash)
                for key, (count, newest) in counts.items()
            ],
        )

    def _insert(self, record: Record, received_us: int, wire_bytes: int) -> Journalled | None:
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
            f"INSERT OR IGNORE INTO record ({_COLUMNS}) VALUES (NULL,?,?,?,?,?,?,?,?,?,?)", values
        )
        return Journalled(cursor.lastrowid or 0, *values) if cursor.rowcount == 1 else None

    def _holds(self, record: Record) -> bool:
        """Whether the record kept under this number is this one."""
        kept = self._database.execute(
            "SELECT event, model_hash, payload FROM record"
            " WHERE survey = ? AND device = ? AND boot = ? AND sequence = ?",
            (record.survey, record.device, record.boot, record.sequence),
        ).fetchone()
        return kept == (record.event, record.model_hash, record.payload)

    def of_event(self, key: tuple[int, int, bytes]) -> list[Journalled]:
        """Every latent of an event, in order of arrival."""
        return self._read("survey = ? AND event = ? AND model_hash = ?", key)

    def newest(self) -> int:
        """The id of the latent that came last; 0 before the first."""
        with reported("journal: cannot be read"):
            return self._database.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()[0]

    def after(self, read: int, most: int) -> list[Journalled]:
        """Of the latents that came after the id ``read`` the first ``most``."""
        return self._read("id > ?", (read,), most)

    def undecoded(self, read: int = 0, most: int = -1) -> list[Journalled]:
        """Latents that came after the last map of their event was drawn: what a restart has to finish. Of those after
        the id ``read`` the first ``most``, or all."""
        return self._read(
            "id > ? AND id > coalesce((SELECT max(last_record) FROM map AS m WHERE m.survey = record.survey"
            " AND m.event = record.event AND m.model_hash = record.model_hash), 0)",
            (read,),
            most,
        )

    def _read(self, condition: str, values: tuple, most: int = -1) -> list[Journalled]:
        with reported("journal: cannot be read"):
            rows = self._database.execute(
                f"SELECT {_COLUMNS} FROM record WHERE {condition} ORDER BY id LIMIT ?", (*values, most)
            )
            return [Journalled(*row) for row in rows]

    def close(self) -> None:
        self._database.close()
