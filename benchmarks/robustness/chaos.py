"""Records lost, duplicated and damaged when links break and processes are killed: five devices, one centre.

    python benchmarks/robustness/chaos.py [--records 10000] [--cuts 100] [--kills 20] [--delay-ms 50] [--link zmq-curve]
    python benchmarks/robustness/chaos.py --records 1000 --cuts 0 --kills 0 --scenario blackhole --hold-s 10
    python benchmarks/robustness/chaos.py --records 2000 --cuts 0 --kills 0 --link serial-mac --bit-error-rate 1e-4
    further: [--released] [--seed 0] [--out results.json]

Each device is a process that replays gathers over its own link: a proxy that delays each way, or a serial line
of 115200 baud. 2 kills in 5 are the centre's. At the end what is in the centre's journal is compared with the
recordings, latent by latent, and with the devices' own logs. The centre decodes with a stand-in that starts at
once; with --released it is `epic central run` and the released model, which takes seconds and 1 GB to start.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from chaos_rig import LINKS, Rig
from chaos_scenarios import SCENARIOS, strike
from chaos_storm import Storm
from chaos_world import N_DEVICES, released_world

# Devices record so slowly that all faults find them at work: a killed process is away for about so long.
FAULT_S, FAULT_RELEASED_S = 0.7, 3.5
AFTER_S = 5.0


def benchmark(folder: Path, given: argparse.Namespace) -> dict:
    """The figures of one run in an empty ``folder``. Raises ``TimeoutError`` and ``TestbedError``."""
    events = given.records // N_DEVICES
    lasts_s = (given.cuts + given.kills) * (FAULT_RELEASED_S if given.released else FAULT_S)
    if given.scenario:
        lasts_s += given.hold_s + AFTER_S
    interval_s = round(lasts_s / events, 4)
    world = released_world(folder) if given.released else None
    started_s = time.monotonic()
    with Rig(folder, events, given.link, interval_s, given.resend_s, world=world, seed=given.seed) as rig:
        for way in (way for both in rig.ways() for way in both):
            way.bit_error_rate = given.bit_error_rate
            way.delay_s = given.delay_ms / 1000
        rig.start()
        storm = Storm(rig, given.cuts, given.kills, given.seed)
        storm.run()
        if given.scenario:
            strike(rig, given.scenario, given.hold_s)
        tally = rig.finish()
        logs = [rig.device(device).entries() for device in range(N_DEVICES)]
        bit_errors = rig.bit_errors()
    options = {name: value for name, value in vars(given).items() if name != "out"}
    return {
        **vars(tally),
        "recorded": N_DEVICES * events,
        "hits": dict(storm.hits),
        "device_boots": sum(row["message"] == "started" for log in logs for row in log),
        "sent": sum(row["message"] == "sent" for log in logs for row in log),
        "bit_errors": bit_errors,
        "interval_s": interval_s,
        "took_s": round(time.monotonic() - started_s, 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        **options,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--link", choices=LINKS, default="zmq-curve")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--hold-s", type=float, default=10.0, help="how long the scenario holds")
    parser.add_argument("--delay-ms", type=float, default=50.0, help="of every link, each way")
    parser.add_argument("--bit-error-rate", type=float, default=0.0)
    parser.add_argument("--resend-s", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--released", action="store_true", help="the real decoder")
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    if given.records < N_DEVICES or given.records % N_DEVICES or min(given.cuts, given.kills) < 0:
        parser.error(f"expected --records a multiple of {N_DEVICES}, --cuts and --kills 0 or more")
    if given.cuts and given.link.startswith("serial"):
        parser.error("--cuts are for connections; a serial line has none: give --cuts 0")
    return given


def main() -> int:
    given = options()
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), given)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    hits = result["hits"]
    print(
        f"{given.link}, {'released model' if given.released else 'decoder replaced'}, "
        f"{given.scenario or 'storm'}: {hits.get('cut', 0)} cuts, {hits.get('device killed', 0)} device and "
        f"{hits.get('centre killed', 0)} centre SIGKILLs, {result['bit_errors']} wrong bits in "
        f"{result['took_s']} s; {result['sent']} sendings, {result['complete_maps']} complete maps"
    )
    print(
        f"{result['recorded']} recorded: {result['lost']} lost, {result['duplicated']} duplicated, "
        f"{result['corrupted']} corrupted, {result['reused']} numbers re-used"
    )
    return 0 if result["lost"] + result["duplicated"] + result["corrupted"] + result["reused"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
