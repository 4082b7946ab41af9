"""Read the store for the page: events by page, all maps of an event, and totals."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.fleet.device_views import DeviceView, read_devices
from central.storage.database import NEWEST, NEWEST_FIRST, StoreError, connect, reported
from central.storage.map_store import MAP_COLUMNS, DamagedMapError, StoredMap, read_map
from central.storage.schema import CHECKED_US, FLAGGED
from firmware_py.runtime.log import now_us

MAX_SURVEY = 0xFFFF
MAX_EVENT = 0xFFFFFFFF
RAW_SAMPLE_BYTES = 4
# Maps of one event that are shown.
MAX_SECTIONS = 50
PREVIEW_CELLS = 24
CHOICES = {"all": "", "partial": " AND partial = 1", "flagged": f" AND {FLAGGED} = 1"}


class NotInStore(StoreError):
    """The event or map does not exist."""


@dataclass(frozen=True)
class Section:
    """Map with its ``id`` in the store; later maps have higher ids."""

    id: int
    stored: StoredMap


def raw_bytes(provenance: dict[str, Any]) -> int:
    """Return the size of the received devices' raw recordings as float32: the data that was not sent."""
    survey = provenance["acquisition"]
    groups = survey["device_receivers"]
    receivers = sum(len(groups[device]) for device in provenance["devices"])
    return len(survey["source_cells"]) * survey["n_time"] * receivers * RAW_SAMPLE_BYTES


def flags(provenance: dict[str, Any]) -> list[str]:
    """Return the reasons to review a map, one line each, from ``flags`` of its provenance."""
    found = list(provenance.get("flags", []))
    if replaced := provenance.get("replaced"):
        found.append(f"devices sent {replaced} more than one latent of this event; the newest was used")
    return found


def summary(section: Section) -> dict[str, Any]:
    """Return a map's key values, ready for JSON."""
    stored = section.stored
    provenance = stored.provenance
    values = {
        "id": section.id,
        "survey": stored.survey,
        "event": stored.event,
        "model_hash": stored.model_hash.hex(),
        "revision": stored.revision,
        "partial": stored.partial,
        "flags": flags(provenance),
        "devices": provenance["devices"],
        "n_devices": len(provenance["acquisition"]["device_receivers"]),
        "sample_time_us": provenance["sample_time_us"],
        "drawn_us": provenance.get("decoded_us"),
        "received_bytes": provenance["received_bytes"],
        "raw_bytes": raw_bytes(provenance),
        "velocity_mean_mps": round(float(stored.velocity_mps.mean()), 1),
        "uncertainty_mean_mps": round(float(stored.uncertainty_mps.mean()), 1),
    }
    if "consistency" in provenance:
        values["consistency"] = provenance["consistency"]
    return values


def detail(section: Section) -> dict[str, Any]:
    """Return ``summary`` with the full provenance."""
    return {**summary(section), "provenance": section.stored.provenance}


def preview(section: Section) -> dict[str, Any]:
    """Return a thumbnail: ``(rows, columns)`` bytes in hex; 0 and 255 are the survey's velocity limits."""
    velocity = section.stored.velocity_mps
    survey = section.stored.provenance["acquisition"]
    low, high = survey["velocity_min_mps"], survey["velocity_max_mps"]
    step = -(-max(velocity.shape) // PREVIEW_CELLS)
    few = np.clip((np.nan_to_num(velocity[::step, ::step]) - low) / (high - low), 0.0, 1.0)
    return {"shape": few.shape, "hex": np.round(few * 255).astype(np.uint8).tobytes().hex()}


@dataclass(frozen=True)
class Account:
    """A map's contribution to the totals; ``partial`` is 1 or -1 where its event became, or ceased to be, partial."""

    id: int
    survey: int
    new: bool
    partial: int
    received_bytes: int
    raw_bytes: int


def to_json(content: Any) -> str:
    """Return strict JSON; values that are not finite become null."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class Archive:
    """Read access of one thread to the store."""

    def __init__(self, data_dir: Path) -> None:
        """Raises ``StoreError``."""
        self._database = connect(data_dir)
        self._database.execute("PRAGMA query_only = ON")

    def version(self) -> int:
        """Return a number that changes with every commit of another connection."""
        with reported("store: cannot be read"):
            return self._database.execute("PRAGMA data_version").fetchone()[0]

    def sections(
        self, before: int | None = None, size: int = 20, survey: int | None = None, only: str = "all"
    ) -> list[Section]:
        """Return the newest maps of up to ``size`` events with ids below ``before``, last decoded first."""
        found: list[Section] = []
        while (wanted := size - len(found)) > 0:
            condition, values = NEWEST + CHOICES[only], []
            for column, test, value in (("rowid", "<", before), ("survey", "=", survey)):
                if value is not None:
                    condition += f" AND {column} {test} ?"
                    values.append(value)
            rows = self._rows(f"{condition} ORDER BY rowid DESC LIMIT ?", (*values, wanted))
            found += [Section(id, stored) for id, stored in rows if isinstance(stored, StoredMap)]
            if len(rows) < wanted:
                break
            # Damaged maps were skipped, so more may follow.
            before = rows[-1][0]
        return found

    def sections_of(self, survey: int, event: int) -> list[Section]:
        """Return the newest ``MAX_SECTIONS`` intact maps of an event, newest first.

        Raises:
            NotInStore: The event has no map.
            DamagedMapError: All of its maps are damaged.
        """
        _check(survey, event)
        condition = f"survey = ? AND event = ? ORDER BY {NEWEST_FIRST} LIMIT {MAX_SECTIONS}"
        found = self._read(condition, (survey, event))
        if not found:
            with reported("store: cannot be read"):
                low, high = self._database.execute(
                    "SELECT min(event), max(event) FROM map WHERE survey = ?", (survey,)
                ).fetchone()
            held = "nothing of that survey" if low is None else f"events from {low} to {high} of it"
            raise NotInStore(f"survey {survey}, event {event}: not in the store, which holds {held}")
        return found

    def section(self, survey: int, event: int, id: int | None = None) -> Section:
        """Return the newest map of an event, or the one with this ``id``.

        Raises:
            NotInStore: There is no such map.
        """
        _check(survey, event)
        if id is None:
            return self.sections_of(survey, event)[0]
        found = self._read("rowid = ? AND survey = ? AND event = ?", (id, survey, event))
        if not found:
            ids = [section.id for section in self.sections_of(survey, event)]
            raise NotInStore(f"survey {survey}, event {event}: has no map {id}; its maps are {ids}")
        return found[0]

    def beside(self, section: Section) -> tuple[int | None, int | None]:
        """Return the numbers of the previous and next event of the same survey."""
        key = (section.stored.survey, section.stored.event)
        with reported("store: cannot be read"):
            return self._database.execute(
                "SELECT (SELECT max(event) FROM map WHERE survey = ?1 AND event < ?2),"
                " (SELECT min(event) FROM map WHERE survey = ?1 AND event > ?2)",
                key,
            ).fetchone()

    def _read(self, condition: str, values: tuple) -> list[Section]:
        """Return the intact maps.

        Raises:
            DamagedMapError: None is intact.
        """
        rows = self._rows(condition, values)
        sections = [Section(id, stored) for id, stored in rows if isinstance(stored, StoredMap)]
        for _, stored in rows[:1]:
            if isinstance(stored, DamagedMapError) and not sections:
                raise stored
        return sections

    def _rows(self, condition: str, values: tuple) -> list[tuple[int, StoredMap | DamagedMapError]]:
        with reported("store: cannot be read"):
            rows = self._database.execute(
                f"SELECT rowid, {MAP_COLUMNS} FROM map WHERE {condition}", values
            ).fetchall()
        return [(id, read_map(tuple(row))) for id, *row in rows]

    def last_checked(self) -> dict[str, int] | None:
        """Return the ``id`` and time of the last map checked by forward modelling, or None."""
        with reported("store: cannot be read"):
            row = self._database.execute(
                f"SELECT rowid, {CHECKED_US} FROM map WHERE {CHECKED_US} > 0 ORDER BY {CHECKED_US} DESC LIMIT 1"
            ).fetchone()
        return row and {"id": row[0], "at_us": row[1]}

    def devices(self, running: bool) -> list[DeviceView]:
        """Return every known device as of now; without a running centre, as of its last sign of a device."""
        with reported("devices: cannot be read"):
            views = read_devices(self._database, now_us())
            if running or not views:
                return views
            return read_devices(self._database, max(view.last_seen_us for view in views))

    def drawn_after(self, id: int, size: int) -> list[Account]:
        """Return what the first ``size`` maps after ``id`` contribute to the totals, in order of decoding."""
        with reported("store: cannot be read"):
            rows = self._database.execute(
                "SELECT rowid, survey, event, model_hash, last_record, partial, provenance FROM map"
                " WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (id, size),
            ).fetchall()
            return [self._account(*row) for row in rows]

    def count_maps(self) -> int:
        """Return the number of stored maps."""
        with reported("store: cannot be read"):
            return int(self._database.execute("SELECT count(*) FROM map").fetchone()[0])

    def count_flagged(self) -> int:
        """Return the number of events whose newest map is flagged; a check may flag a map long after its decoding."""
        with reported("store: cannot be read"):
            query = f"SELECT count(*) FROM map WHERE {FLAGGED} = 1 AND {NEWEST}"
            return int(self._database.execute(query).fetchone()[0])

    def _account(
        self, id: int, survey: int, event: int, model: bytes, last_record: int, *row: Any
    ) -> Account:
        partial, provenance = row
        before = f"survey = ? AND event = ? AND +rowid < ? ORDER BY {NEWEST_FIRST} LIMIT 1"
        earlier = self._database.execute(
            f"SELECT partial, last_record FROM map WHERE {before}", (survey, event, id)
        ).fetchone()
        if earlier and earlier[1] > last_record:
            # Decoded later but from earlier records: not its event's newest map.
            partial = earlier[0]
        # A later map of the same model includes the earlier one's records.
        counted = self._database.execute(
            f"SELECT provenance, last_record FROM map WHERE model_hash = ? AND {before}",
            (model, survey, event, id),
        ).fetchone()
        newest = counted[0] if counted and counted[1] > last_record else provenance
        received, raw = _bytes(newest)
        received_before, raw_before = _bytes(counted[0]) if counted else (0, 0)
        return Account(
            id,
            survey,
            new=earlier is None,
            partial=partial - (earlier[0] if earlier else 0),
            received_bytes=received - received_before,
            raw_bytes=raw - raw_before,
        )

    def close(self) -> None:
        self._database.close()


def _check(survey: int, event: int) -> None:
    if survey > MAX_SURVEY or event > MAX_EVENT:
        raise NotInStore(
            f"survey {survey}, event {event}: not in the store; a survey is at most {MAX_SURVEY}, an event "
            f"at most {MAX_EVENT}"
        )


def _bytes(provenance: str) -> tuple[int, int]:
    try:
        content = json.loads(provenance)
        return content["received_bytes"], raw_bytes(content)
    except (ValueError, TypeError, KeyError, IndexError):
        # A damaged map counts for nothing; the view that shows it reports the damage.
        return 0, 0
