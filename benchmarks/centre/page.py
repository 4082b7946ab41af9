"""How long the operator's page takes on loopback: in headless Chromium, from navigation to the first map drawn.

    python benchmarks/centre/page.py [--loads 10] [--events 1000] [--json]

The store holds maps of noise; the browser's cache is off, so that every load fetches everything. The last line is
the median time to the browser's load event and to the first section on the canvas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from central.config import CentralSection
from central.dashboard.server import PageServer
from central.storage.map_store import NewMap, Store
from firmware_py.runtime.log import Log
from physics.acquisition import Acquisition

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from browser import Browser, find_chromium

MODEL_HASH = bytes(8)
# When the load event had fired and the canvas held a section, on the browser's own clock.
MEASURE = """new Promise((done) => {
  const look = () => {
    const load = performance.getEntriesByType("navigation")[0].loadEventEnd;
    if (load && document.querySelector("#velocity")?.dataset.event) done([load, performance.now()]);
    else setTimeout(look, 1);
  };
  look();
})"""


def fill(data_dir: Path, events: int) -> None:
    survey = Acquisition.openfwi()
    random = np.random.default_rng(1)
    provenance = {
        "devices": list(range(survey.n_devices)),
        "sample_time_us": 1_700_000_000_000_000,
        "received_bytes": 1005,
        "acquisition": survey.to_dict(),
    }
    maps = [
        NewMap(
            (1, event, MODEL_HASH),
            event,
            False,
            random.uniform(1500, 4500, survey.map_shape[1:]).astype(np.float32),
            random.uniform(0, 300, survey.map_shape[1:]).astype(np.float32),
            provenance,
        )
        for event in range(1, events + 1)
    ]
    store = Store(data_dir, create=True)
    store.put(maps)
    store.close()


def benchmark(folder: Path, loads: int, events: int) -> dict[str, float]:
    fill(folder / "data", events)
    log = folder / "log.jsonl"
    section = CentralSection(listen="tcp://127.0.0.1:*", data_dir=folder / "data")
    stop = threading.Event()
    server = PageServer(section, "127.0.0.1:0", Log(log), live=None)
    serving = threading.Thread(target=server.run, args=(stop,))
    serving.start()
    try:
        while '"address"' not in log.read_text():
            time.sleep(0.05)
        address = json.loads(log.read_text().splitlines()[-1])["address"]
        browser = Browser(folder / "profile")
        browser.call("Network.setCacheDisabled", cacheDisabled=True)
        taken = []
        for _ in range(loads + 1):
            browser.open(address)
            taken.append(browser.value(MEASURE))
        browser.close()
    finally:
        stop.set()
        serving.join()
    # The first also starts the browser's own processes.
    load_ms, map_ms = zip(*taken[1:], strict=True)
    return {
        "loads": loads,
        "events": events,
        "load_median_ms": round(statistics.median(load_ms), 1),
        "map_median_ms": round(statistics.median(map_ms), 1),
        "map_worst_ms": round(max(map_ms), 1),
        "map_first_ms": round(taken[0][1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=int, default=10)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not find_chromium():
        parser.error("chromium is not installed; .ci/packages installs it")
    if arguments.loads < 1 or arguments.events < 1:
        parser.error("expected --loads and --events from 1")
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), arguments.loads, arguments.events)
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"{result['load_median_ms']} ms to the load event, {result['map_median_ms']} ms to the first map "
        f"(worst {result['map_worst_ms']}, the browser's first {result['map_first_ms']})"
    )


if __name__ == "__main__":
    main()
