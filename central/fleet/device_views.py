"""Report the state of every device from the centre's database, whether the centre runs or not.

The receiver's group commit keeps ``device_boot`` exact. The rest is at most a second old (``device_registry``).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from central.fleet.rates import rate_of, read_rates
from central.storage.database import StoreError, connect, reported
from firmware_py.protocol.health_messages import Range
from firmware_py.runtime.log import now_us

# Device states, defined only here. Never seen: the survey includes the device, or its key is allowed, but nothing has
# arrived from it.
# Revoked: it was seen before, but its key is no longer allowed.
ON_TIME, LATE, SILENT, NEVER_SEEN, REVOKED = "on time", "late", "silent", "never seen", "revoked"
# Name of the file in the data folder that lists the devices of each model's survey, seen or not.
EXPECTED = "devices.json"
# Beside it: the devices that have an allowed key; absent where the centre runs without keys.
ALLOWED = "allowed.json"
MAX_EXPECTED = 1000
STATES = (ON_TIME, LATE, SILENT, NEVER_SEEN, REVOKED)
# Health intervals of silence before a device counts as late, and as silent.
LATE_INTERVALS, SILENT_INTERVALS = 3, 10
# Records are numbered by uint32.
_MAX_NUMBER = (1 << 32) - 1
# Newest gaps listed per device; all are counted.
MAX_GAPS_LISTED = 100
# Gaps of boots with records; a forgotten boot has none.
_SHOWN_GAPS = "gap JOIN device_boot USING (survey, device, boot) WHERE records > 0"
# Assumed health interval of a device that has not reported one, seconds.
INTERVAL_S = 60


@dataclass(frozen=True)
class Gap:
    """Gap: numbers ``first`` to ``last`` of a ``boot``, of which ``missing`` have never arrived."""

    boot: int
    first: int
    last: int
    missing: int


@dataclass(frozen=True)
class DeviceView:
    """State of one device. Times are the centre's clock in microseconds since 1970; None is unknown.

    Attributes:
        lag_s: Age of the newest record, from its sample time, when it arrived.
        age_s: Age of the newest record now.
        boot, sequence: Numbers of the newest record, the last acknowledged one.
        loss: How many lower numbers have never arrived; listed in ``gaps``.
        dropped: Records that the device dropped from its full spool.
        queue_depth: Records that waited when the device last reported, less those that have arrived since.
        rejected: Recordings that could not be encoded since the device's start; ``rejection`` is the last reason.
        kept_recordings: Recordings that the device can still send on request; None if it has not said.
        last_error: Error with which an earlier start of a microcontroller ended.
        acknowledged_lost: Records acknowledged according to the device, but missing in this database.
        resent: Records lost by this database that the device has sent again since its start.
        not_kept: Records lost by this database that the device no longer has.
        clock_offset_s: Centre's clock minus device's clock, to within half of ``round_trip_s``.
        bytes_received, bytes_sent: Bytes from and to the device, including ZeroMQ's overhead.
        latent_bytes: Length of the device's latents.
        set_bytes: Length set at the centre, if any.
    """

    survey: int
    device: int
    state: str
    last_seen_us: int
    last_latent_us: int | None
    boot: int | None
    sequence: int | None
    lag_s: float | None
    age_s: float | None
    records: int
    loss: int
    gaps: tuple[Gap, ...]
    n_gaps: int
    acknowledged_lost: int
    dropped: int | None
    bytes_received: int
    bytes_sent: int
    refused: int
    refusal: str
    model_hash: str | None
    firmware: str | None
    board: str | None
    interval_s: int
    uptime_s: int | None
    queue_depth: int | None
    encode_s: float | None
    temperature_c: float | None
    disk_free_bytes: int | None
    memory_free_bytes: int | None
    clock_offset_s: float | None
    round_trip_s: float | None
    update_version: int | None
    update_state: str | None
    latent_bytes: int | None
    set_bytes: int | None
    rejected: int | None
    rejection: str | None
    kept_recordings: int | None
    last_error: str | None
    resent: int | None
    not_kept: int | None


def devices(data_dir: Path, at_us: int | None = None) -> list[DeviceView]:
    """Return all devices that were seen, are expected by a survey, or are allowed, in order.

    ``at_us`` is the time of the report, now by default.

    Raises:
        StoreError: The database cannot be read.
    """
    with closing(connect(data_dir)) as database, reported("devices: cannot be read"):
        return read_devices(database, now_us() if at_us is None else at_us)


def read_devices(database: sqlite3.Connection, at_us: int) -> list[DeviceView]:
    """Return the same from an open connection; SQLite errors propagate."""
    # One snapshot: acknowledgements reported by devices are compared with the journal.
    own = not database.in_transaction
    if own:
        database.execute("BEGIN")
    try:
        return _read_devices(database, at_us)
    finally:
        if own:
            database.execute("ROLLBACK")


def _read_devices(database: sqlite3.Connection, at_us: int) -> list[DeviceView]:
    # Newest boot with the records of all boots: SQLite takes bare columns from the row of the max().
    newest = {
        row[:2]: row[2:]
        for row in database.execute(
            "SELECT survey, device, max(boot), highest, sample_time_us, received_us, model_hash, records, sum(records)"
            " FROM device_boot WHERE records > 0 GROUP BY survey, device"
        )
    }
    passed = {
        row[:2]: row[2:]
        for row in database.execute(
            "SELECT survey, device, heard_us, bytes_received, bytes_sent, refused, refusal, status FROM device"
        )
    }
    gaps = {
        row[:2]: row[2:]
        for row in database.execute(
            f"SELECT survey, device, count(*), sum(missing) FROM {_SHOWN_GAPS} GROUP BY survey, device"
        )
    }
    keys = newest.keys() | passed.keys()
    rates = read_rates(database)
    views = []
    for key in sorted(keys):
        n_gaps, loss = gaps.get(key, (0, 0))
        said = read_status(passed[key][-1]) if key in passed else {}
        views.append(
            _view(
                key,
                at_us,
                newest.get(key),
                passed.get(key),
                said,
                gaps=_gaps(database, key) if n_gaps else (),
                n_gaps=n_gaps,
                loss=loss,
                acknowledged_lost=acknowledged_lost(database, key, said),
                set_bytes=rate_of(rates, key),
            )
        )
    allowed = read_allowed(_folder(database))
    if allowed is not None:
        views = [
            view if (view.survey, view.device) in allowed else replace(view, state=REVOKED) for view in views
        ]
    for key in _missing(views, read_expected(_folder(database)), allowed or ()):
        views.append(_view(key, at_us, None, None, {}, **_NOTHING, set_bytes=rate_of(rates, key)))
    return sorted(views, key=lambda view: (view.survey, view.device))


def _missing(
    views: list[DeviceView], expected: Mapping[str, int], allowed: Collection[tuple[int, int]]
) -> set[tuple[int, int]]:
    """Return (survey, device) of each device that is expected by a model or allowed, and has never reported."""
    reported = {(view.survey, view.device) for view in views}
    models = {(view.survey, view.model_hash) for view in views}
    missing = set(allowed)
    for survey in {survey for survey, _ in reported}:
        count = max((n for model, n in expected.items() if (survey, model) in models), default=0)
        missing |= {(survey, device) for device in range(count)}
    return missing - reported


# Counts of a device of which nothing has come.
_NOTHING: dict[str, Any] = {"gaps": (), "n_gaps": 0, "loss": 0, "acknowledged_lost": 0}


def _folder(database: sqlite3.Connection) -> Path:
    return Path(database.execute("PRAGMA database_list").fetchone()[2]).parent


def keep_expected(data_dir: Path, n_devices: Mapping[str, int]) -> None:
    """Keep how many devices the survey of each model has, by model hash in hex. Raises ``StoreError``."""
    _keep(data_dir / EXPECTED, n_devices)


def keep_allowed(data_dir: Path, keys: Collection[tuple[int, int]] | None) -> None:
    """Keep which devices (survey, device) have an allowed key; None for a centre without keys.

    Raises ``StoreError``.
    """
    _keep(data_dir / ALLOWED, None if keys is None else sorted(keys))


def read_allowed(data_dir: Path) -> set[tuple[int, int]] | None:
    """Return what ``keep_allowed`` stored; None if no centre has run yet or the file is damaged."""
    try:
        found = json.loads((data_dir / ALLOWED).read_text())
        return None if found is None else {(int(survey), int(device)) for survey, device in found}
    except (OSError, ValueError, TypeError):
        return None


def _keep(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(json.dumps(content))
        os.replace(aside, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); make room on the disk") from None


def read_expected(data_dir: Path) -> dict[str, int]:
    """Return what ``keep_expected`` stored; empty if no centre has run yet or the file is damaged."""
    try:
        found = json.loads((data_dir / EXPECTED).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {model: n for model, n in found.items() if type(n) is int and 0 < n <= MAX_EXPECTED}


def read_status(text: str) -> dict[str, Any]:
    """Return a device's last report; empty if it is damaged."""
    try:
        status = json.loads(text)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _gaps(database: sqlite3.Connection, key: tuple[int, int]) -> tuple[Gap, ...]:
    """Return the newest gaps of a device, in order."""
    rows = database.execute(
        f"SELECT boot, first, last, missing FROM {_SHOWN_GAPS} AND survey = ? AND device = ?"
        " ORDER BY boot DESC, first DESC LIMIT ?",
        (*key, MAX_GAPS_LISTED),
    ).fetchall()
    return tuple(Gap(*row) for row in reversed(rows))


def acknowledged_lost(database: sqlite3.Connection, key: tuple[int, int], said: dict[str, Any]) -> int:
    """Return how many acknowledged records this database lost: those the device reports beyond the newest here."""
    boot, sequence = said.get("acknowledged_boot"), said.get("acknowledged_sequence")
    if boot is None or sequence is None:
        return 0
    row = database.execute(
        "SELECT highest FROM device_boot WHERE survey = ? AND device = ? AND boot = ?", (*key, boot)
    ).fetchone()
    return max(sequence - (row[0] if row else 0), 0)


def lost_ranges(database: sqlite3.Connection, key: tuple[int, int], said: dict[str, Any]) -> list[Range]:
    """Return ranges of records that the device reports as acknowledged and the database lacks: boot, first, last.

    They are the numbers above the newest record here, and the gaps before the first record that waits on the device.
    """
    boot, sequence = said.get("acknowledged_boot"), said.get("acknowledged_sequence")
    if boot is None or sequence is None or max(boot, sequence) > _MAX_NUMBER:
        return []
    newest = min((boot, sequence), _before(said.get("first_boot"), said.get("first_sequence")))
    gaps = database.execute(
        "SELECT boot, first, last FROM gap WHERE survey = ? AND device = ? AND (boot, last) <= (?, ?)"
        " ORDER BY boot DESC, first DESC LIMIT ?",
        (*key, *newest, MAX_GAPS_LISTED),
    ).fetchall()
    beyond = acknowledged_lost(database, key, said)
    return ([(boot, sequence - beyond + 1, sequence)] if beyond else []) + gaps


def _before(boot: int | None, sequence: int | None) -> tuple[int, int]:
    """Return the number before the first record that waits on the device."""
    return (1 << 32, 0) if boot is None or sequence is None else (boot, sequence - 1)


def _view(
    key: tuple[int, int],
    at_us: int,
    newest: tuple | None,
    passed: tuple | None,
    said: dict[str, Any],
    **counted: Any,
) -> DeviceView:
    boot, sequence, sample_us, latent_us, latent_hash, of_boot, records = newest or (None,) * 5 + (0, 0)
    seen_us, bytes_received, bytes_sent, refused, refusal, _ = passed or (0, 0, 0, 0, "", "{}")
    # A time in the future was taken with a wrong clock; use another one.
    times_us = (seen_us, latent_us or 0)
    last_seen_us = max((one for one in times_us if 0 < one <= at_us), default=max(times_us))
    # A device without a clock is taken to record when its record arrives.
    sample_us = sample_us or latent_us
    interval_s = said.get("interval_s") or INTERVAL_S
    return DeviceView(
        *key,
        state=state_of((at_us - last_seen_us) / 1e6, interval_s) if newest or passed else NEVER_SEEN,
        last_seen_us=last_seen_us,
        last_latent_us=latent_us,
        boot=boot,
        sequence=sequence,
        lag_s=(latent_us - sample_us) / 1e6 if newest else None,
        age_s=(at_us - sample_us) / 1e6 if newest else None,
        records=records,
        dropped=said.get("dropped"),
        bytes_received=bytes_received,
        bytes_sent=bytes_sent,
        refused=refused,
        refusal=refusal,
        model_hash=said.get("model_hash") or (latent_hash.hex() if newest else None),
        firmware=said.get("firmware"),
        board=said.get("board"),
        interval_s=interval_s,
        uptime_s=said.get("uptime_s"),
        queue_depth=_waiting(said, boot, sequence if of_boot == sequence else None),
        encode_s=_scaled(said.get("encode_us"), 1e-6),
        temperature_c=_scaled(said.get("temperature_mc"), 1e-3),
        disk_free_bytes=_mib(said.get("disk_free_mib")),
        memory_free_bytes=_mib(said.get("memory_free_mib")),
        clock_offset_s=_scaled(said.get("clock_offset_us"), 1e-6),
        round_trip_s=_scaled(said.get("round_trip_us"), 1e-6),
        update_version=said.get("update_version"),
        update_state=said.get("update_state"),
        latent_bytes=said.get("latent_bytes"),
        rejected=said.get("rejected"),
        rejection=said.get("rejection"),
        kept_recordings=said.get("kept_recordings"),
        last_error=said.get("last_error"),
        resent=said.get("resent"),
        not_kept=said.get("not_kept"),
        **counted,
    )


def _waiting(said: dict[str, Any], boot: int | None, through: int | None) -> int | None:
    """Return the device's last count of waiting records, less those that came after it.

    ``through`` is the number up to which every record of ``boot`` is here; None if some are missing.
    """
    waiting = said.get("waiting")
    if not waiting or through is None or said.get("said_boot") != boot:
        return waiting
    acknowledged = said.get("acknowledged_sequence") if said.get("acknowledged_boot") == boot else None
    return max(waiting - max(through - (acknowledged or 0), 0), 0)


def state_of(silent_s: float, interval_s: float) -> str:
    """Return a device's state from the time since its last record.

    Args:
        silent_s: Seconds since the device was last seen. Far below zero, the clock was ahead then and nothing has
            arrived since, so the device is silent.
        interval_s: Seconds between its health records.
    """
    if silent_s < -LATE_INTERVALS * interval_s:
        return SILENT
    if silent_s <= LATE_INTERVALS * interval_s:
        return ON_TIME
    return LATE if silent_s <= SILENT_INTERVALS * interval_s else SILENT


def _scaled(value: int | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, 6)


def _mib(value: int | None) -> int | None:
    return None if value is None else value << 20
