"""Check whether a centre can run here as configured, and advise on faults (``epic doctor``).

No record, map or key is changed: the store is opened read-only. A running centre is recognised and not disturbed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from central.config import CentralConfig, ConfigError, ModelSection, load_config
from central.learning.versions import AdaptationError, section_in_use
from central.recordings.store import damaged_recordings
from central.security.keys import KeyRing, KeysError, list_keys, read_centre
from central.storage.database import NoStoreError, StoreError, connect, is_claimed, reported
from central.storage.journal import damaged_records
from central.storage.map_store import damaged_maps
from central.storage.schema import version_of
from central.times import EARLIEST_YEAR
from central.updates.rollout_store import model_section, models_in_use
from firmware_py.inference.bundle import BundleError, load_bundle
from firmware_py.links.base import LinkError
from firmware_py.links.port import split_endpoint

OK, WARN, FAIL = "OK", "WARN", "FAIL"
# Package that identifies each extra, and the extra's purpose.
EXTRAS = {
    "central": ("keras", "decoding maps"),
    "edge": ("ai-edge-litert", "running a device here"),
    "geo": ("segyio", "SEG-Y, miniSEED, Zarr"),
    "tflm": ("tflite-micro", "measuring arenas"),
}
LITTLE_ROOM_BYTES = 1 << 30
SLOW_FSYNC_S = 0.05
FSYNCS = 5
MAX_DAMAGE_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Result of one check: ``state`` is OK, WARN or FAIL; ``advice`` says what to do, if anything."""

    about: str
    state: str
    said: str
    advice: str = ""


def examine(config_path: Path | None, full: bool = False) -> list[Finding]:
    """Check the installation and, with ``config_path``, a centre's configuration.

    ``full`` reads the whole store, which takes minutes if it is large. Without it the time does not depend on the
    store's size, since this runs before each start and every minute.
    """
    findings = [_python(), *_extras(), *_clock()]
    if config_path is None:
        return findings
    try:
        config = load_config(config_path)
    except ConfigError as error:
        return [
            *findings,
            Finding("configuration", FAIL, str(error), "mend the file; see central/README.md"),
        ]
    findings.append(Finding("configuration", OK, str(config_path)))
    centre = _centre(config)
    free = centre is None
    return [
        *findings,
        *_keys(config),
        *_models(config),
        *(_endpoint(config) if centre is None else [centre]),
        *_page(config, free),
        *_gateway(config, free),
        *_disk(config),
        _store(config, full),
        *_rollouts(config),
    ]


def _python() -> Finding:
    version = sys.version.split()[0]
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("Python", OK, version)
    return Finding("Python", FAIL, version, "install Python 3.11, 3.12 or 3.13")


def _extras() -> Iterator[Finding]:
    for extra, (package, use) in EXTRAS.items():
        try:
            yield Finding(f"extra {extra}", OK, f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            state = FAIL if extra == "central" else WARN
            yield Finding(
                f"extra {extra}",
                state,
                f"not installed ({use})",
                f"pip install -e '.[{extra}]' in the clone, if needed",
            )


def _clock() -> Iterator[Finding]:
    now = time.gmtime()
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", now)
    if now.tm_year < EARLIEST_YEAR:
        yield Finding("clock", FAIL, said, "set the clock: times of records and boot numbers come from it")
    elif Path("/run/systemd/timesync/synchronized").exists() or shutil.which("chronyc"):
        yield Finding("clock", OK, f"{said}, kept by a time service")
    else:
        yield Finding("clock", WARN, said, "no time service was found; install chrony or systemd-timesyncd")


def _keys(config: CentralConfig) -> Iterator[Finding]:
    folder = config.central.keys
    if folder is None:
        yield Finding(
            "keys", WARN, "none: whoever can connect on this machine is believed", "epic keys new centre"
        )
        return
    try:
        read_centre(folder)
        KeyRing(folder)
        names = [row["name"] for row in list_keys(folder) if row["state"] == "allowed"]
    except KeysError as error:
        yield Finding("keys", FAIL, str(error), "epic keys list shows what is there")
        return
    if names:
        yield Finding("keys", OK, f"{len(names)} allowed: {', '.join(names[:5])}{' …' if names[5:] else ''}")
    else:
        yield Finding(
            "keys", WARN, "no device is allowed yet", "epic keys new device-0, then epic keys allow device-0"
        )


def _models(config: CentralConfig) -> Iterator[Finding]:
    for section in config.model:
        finding = _model(f"model {section.bundle}", section)
        yield finding
        if finding.state == OK:
            yield from _adapted(config.central.data_dir, section)


def _adapted(data_dir: Path, section: ModelSection) -> Iterator[Finding]:
    """Check the adapted decoder that is in use in place of a release."""
    advice = "epic central adapt rollback returns to the previous decoder; epic central restore brings the folder back"
    try:
        in_use = section_in_use(data_dir, section)
    except AdaptationError as error:
        yield Finding("adapted decoder", FAIL, str(error), advice)
        return
    if in_use is section:
        return
    finding = _model(f"adapted decoder {in_use.decoder.parent.name}", in_use)
    yield finding if finding.state == OK else Finding(finding.about, FAIL, finding.said, advice)


def _model(about: str, section: ModelSection) -> Finding:
    try:
        bundle = load_bundle(section.bundle)
    except BundleError as error:
        return Finding(about, FAIL, str(error), "copy the whole folder again, or convert again")
    weights = section.decoder / "decoder.keras"
    if weights.is_file():
        return Finding(about, OK, f"{bundle.name}, encoder {bundle.model_hash.hex()}")
    return Finding(about, FAIL, f"{weights}: not found", "give the decoder/ of the same conversion")


def _centre(config: CentralConfig) -> Finding | None:
    """Return the running centre, which holds the ports, or None."""
    try:
        if is_claimed(config.central.data_dir):
            return Finding("centre", OK, "is running with this configuration's data")
    except StoreError as error:
        return Finding("centre", FAIL, f"cannot be told: {error}", "run this as the user of the centre")
    return None


def _endpoint(config: CentralConfig) -> Iterator[Finding]:
    listen = config.central.listen
    if listen.startswith("tcp://") and not listen.endswith(":*"):
        yield _bindable("endpoint", listen.removeprefix("tcp://").replace("*:", "0.0.0.0:"))


def _page(config: CentralConfig, free: bool) -> Iterator[Finding]:
    central = config.central
    if central.page_listen is None:
        return
    try:
        central.read_page_token()
    except ConfigError as error:
        yield Finding("page", FAIL, str(error), "mend that file, or give page_token")
        return
    if free:
        yield _bindable("page", central.page_listen)


def _gateway(config: CentralConfig, free: bool) -> Iterator[Finding]:
    section = config.gateway
    if section is None:
        return
    for path in section.ports:
        if not Path(path).exists():
            yield Finding(f"port {path}", WARN, "is not there now", "plug it in; it is found when it comes")
        elif os.access(path, os.R_OK | os.W_OK):
            yield Finding(f"port {path}", OK, "can be opened")
        else:
            yield Finding(
                f"port {path}", FAIL, "may not be opened by this user", "add the user to the group dialout"
            )
    if section.tcp and free:
        yield _bindable("gateway", section.tcp)


def _bindable(about: str, endpoint: str) -> Finding:
    try:
        host, port = split_endpoint(endpoint)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return Finding(about, OK, f"{endpoint} is free")
    except LinkError as error:
        return Finding(about, FAIL, str(error), "give host:port, the port at most 65535")
    except OSError as error:
        return Finding(
            about, FAIL, f"{endpoint}: {error.strerror}", "end what listens there, or choose another port"
        )


def _disk(config: CentralConfig) -> Iterator[Finding]:
    folder = config.central.data_dir
    # Not ``Path.exists``: it raises if another user's folder is not accessible.
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding("disk", FAIL, f"{folder} may not be written by this user", "change its owner")
        return
    room = "make room: what cannot be kept is not acknowledged"
    try:
        free = shutil.disk_usage(folder).free
        commit_s = fsync_s(folder, FSYNCS)
    except OSError as error:
        yield Finding("disk", FAIL, f"{folder}: 4 kB cannot be written ({error.strerror})", room)
        return
    said = f"{free / 1e9:.1f} GB free for {config.central.data_dir}"
    yield Finding("disk", WARN, said, room) if free < LITTLE_ROOM_BYTES else Finding("disk", OK, said)
    said = f"{1000 * commit_s:.1f} ms to have 4 kB on the disk"
    slow = Finding("commit", WARN, said, "a faster disk takes more records")
    yield slow if commit_s > SLOW_FSYNC_S else Finding("commit", OK, said)


def fsync_s(folder: Path, runs: int) -> float:
    """Return the median time to write and sync 4 KiB in ``folder``, in seconds."""
    times_s = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        for _ in range(runs):
            file.write(bytes(4096))
            file.flush()
            started_s = time.perf_counter()
            os.fsync(file.fileno())
            times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s)


def _store(config: CentralConfig, full: bool) -> Finding:
    # The highest id approximates the count without a scan: ids are given in order.
    records, maps = ("count(*)", "count(*)") if full else ("coalesce(max(id), 0)", "coalesce(max(rowid), 0)")
    damage: list[str] = []
    try:
        with (
            contextlib.closing(connect(config.central.data_dir, read_only=True)) as database,
            reported("store: cannot be read"),
        ):
            (n_records,) = database.execute(f"SELECT {records} FROM record").fetchone()
            (n_maps,) = database.execute(f"SELECT {maps} FROM map").fetchone()
            if full:
                damage = _damage(database, n_records, n_maps)
    except NoStoreError:
        return Finding("store", OK, "none yet: the first run makes it")
    except StoreError as error:
        advice = "make room, be the user of the centre; if that is not it, restore it from a backup"
        return Finding("store", FAIL, str(error), advice)
    if damage:
        return Finding("store", FAIL, "; ".join(damage), "restore it from a backup: epic central restore")
    read = "read through, no damage" if full else "opened, not read through (--full)"
    return Finding("store", OK, f"{n_records} records, {n_maps} maps; {read}")


def _rollouts(config: CentralConfig) -> Iterator[Finding]:
    """Check the rolled-out models, which are stored beside the database."""
    data_dir = config.central.data_dir
    try:
        with (
            contextlib.closing(connect(data_dir, read_only=True)) as database,
            reported("rollouts: cannot be read"),
        ):
            rows = database.execute(
                "SELECT version, model_hash FROM rollout ORDER BY version DESC"
            ).fetchall()
            in_use = models_in_use(database) if rows[1:] else set()
    except StoreError:
        # The store's own finding gives the reason.
        return
    for version, model_hash in rows:
        if version != rows[0][0] and model_hash not in in_use:
            continue
        section = model_section(data_dir, version)
        finding = _model(f"rollout {version}", section)
        if finding.state == FAIL:
            advice = "epic central restore brings it back from a backup; or roll the model out again"
            finding = Finding(finding.about, FAIL, finding.said, advice)
        yield finding


def _damage(database: sqlite3.Connection, n_records: int, n_maps: int) -> list[str]:
    """Return the damage found by SQLite and the checksums; only the first in full."""
    (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        return [f"damaged: {found}"]
    version = version_of(database)
    if version < 2:
        # From before there were checksums; the next start of the centre adds the columns.
        return []
    records, maps = list(damaged_records(database)), list(damaged_maps(database))
    recordings = list(damaged_recordings(database)) if version >= 3 else []
    if not records and not maps and not recordings:
        return []
    return [
        f"{len(records)} of {n_records} records, {len(maps)} of {n_maps} maps and {len(recordings)} recordings "
        "are damaged",
        *(f"record {id}" for id in records[:MAX_DAMAGE_SHOWN]),
        *maps[:MAX_DAMAGE_SHOWN],
        *recordings[:MAX_DAMAGE_SHOWN],
    ]
