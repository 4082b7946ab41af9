"""What was received, on the disk before anything is acknowledged; idempotent on (survey, device, boot, sequence)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from central.database import StoreError, connect
from firmware_py.packet import Record


@dataclass(frozen=True)
class Journalled:
    """A latent in the journal; ``id`` grows in the order of arrival."""

    id: int
    survey: int
    event: int
    model_hash: bytes
    device: int
    sample_time_us: int
    received_us: int
    wire_bytes: int
    payload: bytes

    @property
    def key(self) -> tuple[int, int, bytes]:
        """The event it belongs to: (survey, event, model hash). Models never mix."""
        return (self.survey, self.event, self.model_hash)


_COLUMNS = "id, survey, event, model_hash, device, sample_time_us, received_us, wire_bytes, payload"


class Journal:
    """One thread's view of the journal."""

    def __init__(self, data_dir: Path) -> None:
        self._database = connect(data_dir, create=True)

    def commit(self, records: Sequence[tuple[Record, int, int]]) -> list[Journalled]:
        """Put ``(record, received_us, wire_bytes)`` on the disk in one transaction; returns the new ones.

        A record that is there already is left as it is. Raises ``StoreError`` (a full disk, say) with
        nothing of the group kept.
        """
        new = []
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for record, received_us, wire_bytes in records:
                cursor = self._database.execute(
                    "INSERT OR IGNORE INTO record (survey, device, boot, sequence, event, model_hash,"
                    " sample_time_us, received_us, wire_bytes, payload) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        record.survey,
                        record.device,
                        record.boot,
                        record.sequence,
                        record.event,
                        record.model_hash,
                        record.sample_time_us,
                        received_us,
                        wire_bytes,
                        record.payload,
                    ),
                )
                if cursor.rowcount == 1:
                    new.append(
                        Journalled(
                            cursor.lastrowid or 0,
                            record.survey,
                            record.event,
                            record.model_hash,
                            record.device,
                            record.sample_time_us,
                            received_us,
                            wire_bytes,
                            record.payload,
                        )
                    )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise StoreError(f"journal: cannot commit {len(records)} records ({error}); make room") from None
        return new

    def of_event(self, key: tuple[int, int, bytes]) -> list[Journalled]:
        """Every latent of an event, in order of arrival."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM record WHERE survey = ? AND event = ? AND model_hash = ? ORDER BY id",
            key,
        )
        return [Journalled(*row) for row in rows]

    def undecoded(self) -> list[Journalled]:
        """Latents of events whose newest latent is in no map yet: what a restart has to finish."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM record AS r WHERE r.id > coalesce((SELECT max(last_record) FROM map AS m"
            " WHERE m.survey = r.survey AND m.event = r.event AND m.model_hash = r.model_hash), 0) ORDER BY id"
        )
        return [Journalled(*row) for row in rows]

    def close(self) -> None:
        self._database.close()
