"""Records lost and duplicated when links are cut and processes killed: five device processes, a centre's.

    python benchmarks/chaos.py [--records 10000] [--cuts 100] [--kills 20] [--link zmq-curve] [--released]
                               [--out results.json]

Each device replays gathers over its own link through a proxy; 2 kills in 5 are the centre's. At the end what
is in the centre's journal is compared with the recordings, latent by latent, and with the devices' own logs.
The centre decodes with a stand-in that starts at once; with --released it is `epic central run` and the
released model, which takes seconds and 1 GB to start.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from chaos_rig import LINKS, Rig
from chaos_storm import Storm
from chaos_world import N_DEVICES, released_world

# Devices record so slowly that all faults find them at work: a killed process is away for about so long.
FAULT_S = 0.7


def benchmark(
    folder: Path, records: int, cuts: int, kills: int, link: str, seed: int, released: bool
) -> dict:
    """The figures of one run in an empty ``folder``. Raises ``TimeoutError`` and ``TestbedError``."""
    events = records // N_DEVICES
    fault_s = 5 * FAULT_S if released else FAULT_S
    interval_s = round(max((cuts + kills) * fault_s / events, 0.0), 4)
    world = released_world(folder) if released else None
    started_s = time.monotonic()
    with Rig(folder, events, link, interval_s, world=world, seed=seed) as rig:
        rig.start()
        storm = Storm(rig, cuts, kills, seed)
        storm.run()
        tally = rig.finish()
        boots = sum(row["what"] == "started" for d in range(N_DEVICES) for row in rig.device(d).entries())
        sent = [row for d in range(N_DEVICES) for row in rig.device(d).entries("sent")]
    return {
        **vars(tally),
        "recorded": N_DEVICES * events,
        "hits": dict(storm.hits),
        "device_boots": boots,
        "sent": len(sent),
        "link": link,
        "centre": "epic central run, released model" if released else "epic centre, decoder replaced",
        "seed": seed,
        "interval_s": interval_s,
        "took_s": round(time.monotonic() - started_s, 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    links = [link for link in LINKS if not link.startswith("serial")]
    parser.add_argument("--link", choices=links, default="zmq-curve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--released", action="store_true", help="the real decoder")
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    if given.records < N_DEVICES or given.records % N_DEVICES or min(given.cuts, given.kills) < 0:
        parser.error(f"expected --records a multiple of {N_DEVICES}, --cuts and --kills 0 or more")
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(
            Path(folder), given.records, given.cuts, given.kills, given.link, given.seed, given.released
        )
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    hits = result["hits"]
    print(
        f"{result['link']}, {result['centre']}: {hits.get('cut', 0)} cuts, {hits.get('device killed', 0)} device "
        f"and {hits.get('centre killed', 0)} centre SIGKILLs in {result['took_s']} s; {result['sent']} sendings, "
        f"{result['complete_maps']} complete maps"
    )
    print(
        f"{result['recorded']} recorded: {result['lost']} lost, {result['duplicated']} duplicated, "
        f"{result['corrupted']} corrupted, {result['reused']} numbers re-used"
    )
    return 0 if result["lost"] + result["duplicated"] + result["corrupted"] + result["reused"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
