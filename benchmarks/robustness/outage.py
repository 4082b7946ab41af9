"""The centre away for an hour: what devices keep meanwhile, and how fresh records fare while the backlog drains.

    python benchmarks/robustness/outage.py [--away-s 3600] [--spool-records 3000] [--rate-bytes-per-s 4000]
    further: [--link zmq-curve] [--out results.json]

Five device processes watch folders. The hour is simulated: the recordings of one a second are put there at
once, and recorded as fast as the devices can, with nobody to send to. Then the centre starts, each link
carries so many bytes a second each way, and a recording comes every second of real time until every spool is
empty. A record is fresh while draining if it was recorded after its device's first acknowledgement and before its
spool was empty; its delay is from then on to its own acknowledgement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from chaos_rig import LINKS, Rig
from chaos_tally import tally
from chaos_world import N_DEVICES, World, tiny_world
from waiting import wait_until

from firmware_py.storage.window import FRESH_S

TIMEOUT_S = 1200.0
FRESH_INTERVAL_S = 1.0


def put_recording(rig: Rig, world: World, event: int) -> None:
    """Every device's part of an event, in the folder that it watches."""
    gather = world.gathers[(event - 1) % len(world.gathers)]
    for device, group in enumerate(world.bundle.manifest["acquisition"]["device_receivers"]):
        part = rig.incoming(device) / f".shot-{event:06d}.npy"
        np.save(part, gather[:, :, group])
        os.replace(part, part.with_name(part.name.removeprefix(".")))


def spooled(rig: Rig, device: int) -> int:
    """Records in a device's spool."""
    path = rig.state_dir(device) / "spool.sqlite"
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as database:
        return database.execute("SELECT count(*) FROM record").fetchone()[0]


def recorded(rig: Rig) -> int:
    """Recordings that devices have taken from their folders."""
    return sum(1 for device in range(N_DEVICES) for _ in rig.incoming(device).joinpath("sent").glob("*.npy"))


def fresh_delays_s(log: list[dict], empty_us: int) -> list[float]:
    """Of one device's records that were fresh while its backlog drained."""
    acknowledged = {row["sequence"]: row["timestamp_us"] for row in log if row["message"] == "acknowledged"}
    first_us = min(acknowledged.values())
    return [
        (acknowledged[row["sequence"]] - row["recorded_us"]) / 1e6
        for row in log
        if row["message"] == "recorded" and first_us < row["recorded_us"] < empty_us
    ]


def benchmark(folder: Path, given: argparse.Namespace) -> dict:
    """The figures of one run in an empty ``folder``. Raises ``AssertionError`` when something takes too long."""
    world = tiny_world(folder)
    away = given.away_s
    with Rig(
        folder, 0, given.link, resend_s=2.0, world=world, spool_records=given.spool_records, replay=False
    ) as rig:
        for event in range(1, away + 1):
            put_recording(rig, world, event)
        for device in range(N_DEVICES):
            rig.start_device(device)
        wait_until(lambda: recorded(rig) == N_DEVICES * away, TIMEOUT_S, "every recording of the hour")
        kept = [spooled(rig, device) for device in range(N_DEVICES)]
        # Time was compressed: but for this, the device would take much of the hour for fresh.
        time.sleep(FRESH_S)
        for way in (way for both in rig.ways() for way in both):
            way.rate_bytes_per_s = given.rate_bytes_per_s
        rig.start_centre()
        event, back_s = away, time.monotonic()
        empty_us: dict[int, int] = {}
        while len(empty_us) < N_DEVICES:
            event += 1
            put_recording(rig, world, event)
            time.sleep(FRESH_INTERVAL_S)
            for device in range(N_DEVICES):
                if device not in empty_us and spooled(rig, device) <= 1:
                    empty_us[device] = time.time_ns() // 1000
            if time.monotonic() - back_s > TIMEOUT_S:
                raise AssertionError(f"after {TIMEOUT_S:.0f} s only {len(empty_us)} spools are empty")
        wait_until(lambda: recorded(rig) == N_DEVICES * event, 60.0, "the last recordings")
        wait_until(lambda: sum(spooled(rig, d) for d in range(N_DEVICES)) == 0, 60.0, "the last records")
        for device in range(N_DEVICES):
            rig.device(device).end()
        rig.centre.end()
        logs = [rig.device(device).entries() for device in range(N_DEVICES)]
        found = tally(world, logs, rig.data_dir, event)
    delays_s = [delay for device, log in enumerate(logs) for delay in fresh_delays_s(log, empty_us[device])]
    dropped = sum(log[-1]["dropped"] for log in logs)
    return {
        "recorded_away": N_DEVICES * away,
        "recorded": N_DEVICES * event,
        "kept": sum(kept),
        "kept_most": max(kept),
        "dropped": dropped,
        "delivered": found.records,
        "lost": found.lost - dropped,
        "duplicated": found.duplicated,
        "corrupted": found.corrupted,
        "reused": found.reused,
        "drained_s": round((max(empty_us.values()) - first_acknowledged_us(logs)) / 1e6, 1),
        "fresh": len(delays_s),
        "fresh_median_s": round(statistics.median(delays_s), 2),
        "fresh_worst_s": round(max(delays_s), 2),
        **{name: value for name, value in vars(given).items() if name != "out"},
    }


def first_acknowledged_us(logs: list[list[dict]]) -> int:
    return min(row["timestamp_us"] for log in logs for row in log if row["message"] == "acknowledged")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--away-s", type=int, default=3600, help="simulated; one recording a second")
    parser.add_argument("--spool-records", type=int, default=3000, help="bound of each device's spool")
    parser.add_argument("--rate-bytes-per-s", type=float, default=4000.0, help="of each link, each way")
    parser.add_argument(
        "--link", choices=[link for link in LINKS if link[:3] in ("zmq", "tcp")], default="zmq-curve"
    )
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    if min(given.away_s, given.spool_records) < 1 or given.rate_bytes_per_s <= 0:
        parser.error("expected --away-s and --spool-records from 1, and a --rate-bytes-per-s")
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), given)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{given.link}, {given.rate_bytes_per_s:.0f} bytes/s each way: {result['recorded_away']} recorded while the "
        f"centre was away, {result['kept']} kept (at most {result['kept_most']} of {given.spool_records} in a "
        f"spool); drained in {result['drained_s']} s beside {result['fresh']} fresh records, acknowledged after "
        f"{result['fresh_median_s']} s (median)"
    )
    print(
        f"{result['recorded']} recorded, {result['dropped']} dropped by the bound and counted, "
        f"{result['delivered']} delivered, {result['lost']} lost, {result['duplicated']} duplicated, "
        f"{result['corrupted']} corrupted; worst delay of a fresh record while draining {result['fresh_worst_s']} s"
    )
    return 0 if result["lost"] == result["duplicated"] == result["corrupted"] == result["reused"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
