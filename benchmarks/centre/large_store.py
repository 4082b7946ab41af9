"""How long a large store takes to start, list and show: ``python benchmarks/centre/large_store.py --events 400000``.

Builds a store of five records an event and a map each, as a centre leaves it, then asks what a start, the commands and
the page ask, and how long a backup takes beside two latents a second. Prints one JSON object; ``--folder`` keeps the
store for another run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from central.dashboard.archive import Archive
from central.fleet.device_registry import DeviceRegistry
from central.fleet.device_views import devices
from central.storage.database import FILE_NAME, connect
from central.storage.journal import Journal
from central.storage.map_codec import encode_map
from central.storage.map_store import MAP_COLUMNS, Store, _checksum
from central.updates.rollout_store import RolloutStore
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log, now_us
from physics.acquisition import Acquisition

DEVICES = 5
MODEL = bytes(range(8))
BATCH = 5000
LATENTS_PER_S = 2


def build(folder: Path, events: int) -> None:
    """A store of ``events`` whole events, one a second up to now: copies of a first, so without right checksums."""
    Journal(folder).close()
    rng = np.random.default_rng(1)
    depth = np.linspace(1500, 4500, 70)[:, None] + np.zeros(70)
    # Texture as a decoder leaves it: 4.5 kB a map.
    velocity, uncertainty = (encode_map(mean + rng.normal(0, 9, (70, 70))) for mean in (depth, 100.0))
    start_us = now_us() - events * 1_000_000
    provenance = {
        "devices": list(range(DEVICES)),
        "replaced": 0,
        "model_hash": MODEL.hex(),
        "sample_time_us": start_us,
        "decoded_us": start_us,
        "received_bytes": 850,
        "acquisition": Acquisition.openfwi().to_dict(),
    }
    with closing(connect(folder)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        for first in range(0, events, BATCH):
            # SQL counts them: Python would take hours.
            numbers = (
                f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n"
                f" WHERE i < {min(first + BATCH, events) - 1})"
            )
            # Of the last record of the batch.
            through = DEVICES * min(first + BATCH, events)
            database.execute("BEGIN")
            for device in range(DEVICES):
                database.execute(
                    "INSERT INTO record (survey, event, model_hash, device, boot, sequence, sample_time_us,"
                    f" received_us, wire_bytes, payload) {numbers}"
                    f" SELECT 1, i, ?, {device}, 1, i + 1, {start_us} + i * 1000000, {start_us} + i * 1000000, 170,"
                    " zeroblob(128) FROM n",
                    (MODEL,),
                )
            database.execute(
                "INSERT INTO map (survey, event, model_hash, revision, last_record, partial, provenance, n_depth,"
                f" n_width, velocity, uncertainty) {numbers} SELECT 1, i, ?, 1, {through}, 0,"
                " ?, 70, 70, ?, ? FROM n",
                (MODEL, json.dumps(provenance), velocity, uncertainty),
            )
            database.execute("COMMIT")
        # The maps that are shown are whole.
        for row in database.execute(
            f"SELECT rowid, {MAP_COLUMNS} FROM map ORDER BY rowid DESC LIMIT 100"
        ).fetchall():
            database.execute("UPDATE map SET checksum = ? WHERE rowid = ?", (_checksum(row[1:-1]), row[0]))
        for device in range(DEVICES):
            database.execute(
                "INSERT INTO device_boot (survey, device, boot, records, highest, sample_time_us, received_us,"
                " model_hash, changed) VALUES (1, ?, 1, ?, ?, ?, ?, ?, ?)",
                (device, events, events, now_us(), now_us(), MODEL, DEVICES * events),
            )


def timed(ask) -> float:
    began_s = time.perf_counter()
    ask()
    return round(time.perf_counter() - began_s, 3)


def open_all(folder: Path) -> None:
    """What a start does with the store before it says that it is ready."""
    Journal(folder).close()
    RolloutStore(folder, create=True).close()
    DeviceRegistry(folder, lambda record: None, Log(folder / "log"))
    with closing(RolloutStore(folder)) as rollouts:
        rollouts.models_in_use()


def read_on(folder: Path) -> None:
    """What the decoder reads before its first new latent: what an earlier run left."""
    with closing(Journal(folder)) as journal:
        assert not journal.undecoded(0, 256)


def back_up(folder: Path, config: Path) -> dict[str, float]:
    """How long the backup command takes beside ``LATENTS_PER_S``, and the slowest of their commits meanwhile."""
    ended = threading.Event()
    commits_s: list[float] = []

    def receive() -> None:
        with closing(Journal(folder)) as journal:
            while not ended.wait(1 / LATENTS_PER_S):
                number = len(commits_s) + 1
                event = (1 << 31) + number // DEVICES
                record = packet.Record(
                    packet.LATENT, number % DEVICES, 1, 2, number, event, now_us(), MODEL, bytes(128)
                )
                commits_s.append(timed(lambda record=record: journal.commit([(record, now_us(), 170)])))

    out = folder.with_name("backup.tar")
    out.unlink(missing_ok=True)
    receiving = threading.Thread(target=receive)
    receiving.start()
    line = [sys.executable, "-m", "epic", "central", "backup", str(out), "--config", str(config)]
    try:
        took_s = timed(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL))
    finally:
        ended.set()
        receiving.join()
    return {
        "backup_command_s": took_s,
        "backup_gb": round(out.stat().st_size / 1e9, 3),
        "commits_beside_backup": len(commits_s),
        "commit_slowest_s": max(commits_s),
    }


def measure(folder: Path, config: Path) -> dict[str, float]:
    def page() -> None:
        with closing(Archive(folder)) as archive:
            newest = archive.sections(size=21)[0].stored
            archive.sections_of(newest.survey, newest.event)

    def many() -> None:
        with closing(Store(folder)) as store:
            assert len(list(store.recent(last=50))) == 50

    def command(*arguments: str) -> float:
        line = [sys.executable, "-m", "epic", "central", *arguments, "--config", str(config)]
        return timed(lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL))

    return {
        "start_s": timed(lambda: open_all(folder)),
        "undecoded_s": timed(lambda: read_on(folder)),
        "list_s": timed(many),
        "page_s": timed(page),
        "devices_s": timed(lambda: devices(folder)),
        "list_command_s": command("list"),
        **back_up(folder, config),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, help="where the store is, or is made and left")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = given.folder or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        folder, config = base / "data", base / "central.toml"
        config.write_text(
            '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
            '[[model]]\nbundle = "none"\ndecoder = "none"\n'
        )
        built_s = 0.0
        if not (folder / FILE_NAME).exists():
            built_s = timed(lambda: build(folder, given.events))
        found = {
            "events": given.events,
            "records": DEVICES * given.events,
            "store_gb": round((folder / FILE_NAME).stat().st_size / 1e9, 3),
            "built_s": built_s,
        }
        print(json.dumps({**found, **measure(folder, config)}))


if __name__ == "__main__":
    main()
