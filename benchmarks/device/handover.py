"""How long a device takes from an encoded latent to the link, one device alone.

    python benchmarks/device/handover.py [--state FOLDER] [--events 60]

The device replays gathers that are shipped with EPIC, ten a second, to a centre that acknowledges and does nothing
else. Its spool is in FOLDER: a folder on the card or disk to be measured, by default the one for temporary files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fake_centre import FakeCentre  # noqa: E402

from firmware_py.runtime.config import (  # noqa: E402
    LinkSection,
    NodeConfig,
    NodeSection,
    RunSection,
    SourceSection,
)
from firmware_py.runtime.node import Node  # noqa: E402
from testbed.samples import load_samples  # noqa: E402

BUNDLE = ROOT / "models" / "zoo" / "epic-small-128" / "bundle"
INTERVAL_S = 0.1


def queued_ms(log: Path) -> list[float]:
    """Return the time of each record of a device's log from its latent to its first handing over, in ms."""
    encoded_us, found = {}, []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["message"] == "recorded":
            encoded_us[entry["sequence"]] = entry["recorded_us"] + 1e6 * entry["encode_s"]
        elif entry["message"] == "sent" and not entry["again"]:
            found.append((entry["sent_us"] - encoded_us[entry["sequence"]]) / 1000)
    return found


def measure(folder: Path, events: int) -> list[float]:
    samples = [sample.gather for sample in load_samples()]
    np.save(folder / "gathers.npy", np.stack([samples[n % len(samples)] for n in range(events)]))
    with FakeCentre() as centre:
        config = NodeConfig(
            NodeSection(device=2, bundle=BUNDLE, state_dir=folder / "state"),
            LinkSection(centre.endpoint),
            SourceSection("files", (folder / "gathers.npy",), interval_s=INTERVAL_S),
            RunSection(True, folder / "log"),
        )
        Node(config).run()
    return queued_ms(folder / "log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, help="folder on the disk to be measured")
    parser.add_argument("--events", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.state) as folder:
        times_ms = measure(Path(folder), given.events)
    print(
        f"median {np.median(times_ms):.2f} ms, 95 % within {np.percentile(times_ms, 95):.2f} ms, {len(times_ms)} events"
    )


if __name__ == "__main__":
    main()
