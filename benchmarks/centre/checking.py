"""What `consistency_check = true` costs: seconds a check takes beside a centre at work, and what maps feel of it.

    python benchmarks/centre/checking.py [--model models/zoo/epic-small-128] [--events 20] [--interval 1.0] [--json]

A centre in this process takes the latents of the shipped gathers, an event each --interval seconds, first without
checks and then with them. Its maps are timed from the last latent's arrival to the decoded map. The second turn begins
when the first check is done, so that nothing is compiled in it, and ends when every map is checked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import zmq

from central.config import CentralConfig
from central.pipeline.decoders import load_models
from central.service import Service
from central.storage.map_store import Store
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log
from physics.acquisition import Acquisition
from testbed.samples import load_samples

TIMEOUT_S = 300.0


def encode(model: Path) -> tuple[bytes, list[list[bytes]]]:
    """Model hash, and of every shipped gather each device's latent."""
    bundle = load_bundle(model / "bundle")
    encoder = Encoder(bundle)
    groups = Acquisition.from_dict(bundle.manifest["acquisition"]).device_receivers
    return bundle.model_hash, [
        [encoder.encode_recording(sample.gather[:, :, list(group)]).tobytes() for group in groups]
        for sample in load_samples()
    ]


def await_lines(log: Path, what: str, count: int) -> list[dict]:
    """The log's lines of a kind, once there are so many. Raises ``TimeoutError``."""
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        lines = [
            line for text in log.read_text().splitlines() if (line := json.loads(text))["message"] == what
        ]
        if len(lines) >= count:
            return lines
        time.sleep(0.05)
    raise TimeoutError(f"{count} lines {what!r} did not come within {TIMEOUT_S:.0f} s")


def turn(folder: Path, model: Path, check: bool, events: int, interval_s: float) -> dict[str, float]:
    """A centre over ``folder`` that draws ``events`` maps; one more comes first, to begin with."""
    central = {
        "listen": "tcp://127.0.0.1:*",
        "data_dir": folder,
        "pictures": False,
        "consistency_check": check,
    }
    sections = [{"bundle": model / "bundle", "decoder": model / "decoder"}]
    config = CentralConfig.model_validate({"central": central, "model": sections})
    model_hash, gathers = encode(model)
    path = folder / "central.jsonl"
    service = Service(config, load_models(config), Log(path))
    thread = threading.Thread(target=service.run)
    thread.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(service.receiver.endpoint)
    resident_bytes = 0.0
    try:
        for event in range(events + 1):
            for device, payload in enumerate(gathers[event % len(gathers)]):
                record = packet.Record(packet.LATENT, device, 1, 1, event + 1, event, 0, model_hash, payload)
                socket.send(packet.encode_record(record))
            await_lines(path, "map", event + 1)
            if event == 0 and check:
                await_lines(path, "checked", 1)
            time.sleep(interval_s)
        checked = await_lines(path, "checked", events + 1)[1:] if check else []
        for child in multiprocessing.active_children():
            status = Path(f"/proc/{child.pid}/status").read_text()
            resident_bytes = 1024.0 * int(status.split("VmHWM:")[1].split()[0])
    finally:
        service.stop()
        thread.join()
        socket.close()
        context.term()
    with closing(Store(folder)) as store:
        drawn = [one.provenance for one in store.newest() if one.event > 0]
    waits_ms = [(one["decoded_us"] - one["last_received_us"]) / 1000 for one in drawn]
    found = {"drawn_median_ms": statistics.median(waits_ms), "drawn_worst_ms": max(waits_ms)}
    if checked:
        found["check_median_s"] = statistics.median(line["seconds"] for line in checked)
        found["resident_bytes"] = resident_bytes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.events < 1 or arguments.interval < 0:
        parser.error("expected --events from 1 and --interval from 0")
    results = {}
    for name, check in (("without", False), ("with", True)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = turn(Path(folder), arguments.model, check, arguments.events, arguments.interval)
    if arguments.json:
        print(json.dumps(results))
        return
    for name, found in results.items():
        print(
            f"{name} checks: a map {found['drawn_median_ms']:.0f} ms after its last latent (median; worst "
            f"{found['drawn_worst_ms']:.0f})"
        )
    beside = results["with"]
    print(
        f"a check: {beside['check_median_s']:.2f} s (median), {beside['resident_bytes'] / 1e6:.0f} MB resident"
    )


if __name__ == "__main__":
    main()
