"""How long a device takes from a recording to its latent, on one core and without TensorFlow: runs on a board.

    python benchmarks/device/encode.py [--bundle DIR] [--runs 500] [--starts 5] [--json]

Also how long from the start of the device's process to its first record at a centre on the same machine.

The median is the figure to quote; the 95th percentile says how noisy the machine was. `inference.py` has
the decoder and InversionNet beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before numpy is imported, which starts its threads then.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import zmq

from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.inference.companding import compand, quantise
from firmware_py.inference.encoder import Encoder, EncoderError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "models" / "zoo" / "epic-small-128" / "bundle"
WARM_UP_RUNS = 10
START_TIMEOUT_S = 30


def measure(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Median and 95th percentile of ``work``'s time in ms."""
    for _ in range(WARM_UP_RUNS):
        work()
    times_ms = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started) * 1000)
    return summary(times_ms)


def summary(times_ms: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(float(np.median(times_ms)), 4),
        "p95_ms": round(float(np.percentile(times_ms, 95)), 4),
    }


def benchmark(bundle: Bundle, runs: int) -> dict[str, dict[str, float]]:
    """Times of the two halves of encoding and of both together, on noise of a recording's size."""
    _, n_time, width, n_sources = bundle.input.shape
    encoder = Encoder(bundle)
    part = np.random.default_rng(0).normal(size=(n_sources, n_time * bundle.companding.thin, width))
    part = part.astype(np.float32)

    def prepare() -> np.ndarray:
        companded = compand(part, bundle.companding, width)
        return quantise(companded, bundle.input.scale, bundle.input.zero_point)

    ready = prepare()
    return {
        "compand and quantise": measure(prepare, runs),
        "encode": measure(lambda: encoder.encode(ready), runs),
        "recording to latent": measure(lambda: encoder.encode_recording(part), runs),
    }


def measure_starts(bundle: Bundle, starts: int) -> dict[str, float]:
    """From starting ``python -m firmware_py run`` to its first record here. Raises ``BundleError``."""
    context = zmq.Context()
    centre = context.socket(zmq.ROUTER)
    times_ms = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        survey = bundle.manifest["acquisition"]
        shape = (1, len(survey["source_cells"]), survey["n_time"], len(survey["receiver_cells"]))
        np.save(folder / "gathers.npy", np.zeros(shape, np.float32))
        for k in range(starts):
            port = centre.bind_to_random_port("tcp://127.0.0.1")
            (folder / "node.toml").write_text(
                f"[node]\ndevice = 0\nbundle = {json.dumps(str(bundle.folder.resolve()))}\n"
                f'state_dir = "state-{k}"\n[link]\nendpoint = "tcp://127.0.0.1:{port}"\ninsecure = true\n'
                '[source]\nkind = "files"\npaths = ["gathers.npy"]\n[run]\nlog = "node.jsonl"\n'
            )
            started = time.perf_counter()
            device = subprocess.Popen(
                [sys.executable, "-m", "firmware_py", "run", "--config", str(folder / "node.toml")], cwd=ROOT
            )
            heard = centre.poll(START_TIMEOUT_S * 1000)
            times_ms.append((time.perf_counter() - started) * 1000)
            device.kill()
            device.wait()
            if not heard:
                raise BundleError(
                    f"{bundle.folder}: no record within {START_TIMEOUT_S} s; see the line above"
                )
            centre.recv_multipart()
            centre.unbind(f"tcp://127.0.0.1:{port}")
    centre.close(0)
    context.term()
    return summary(times_ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT, help="bundle folder")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--starts", type=int, default=5, help="starts of the device's process; 0 for none")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    # The runtime is told one thread; this keeps the kernel from moving that thread about.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if given.runs < 1:
        parser.error(f"--runs: expected at least 1, got {given.runs}")
    if given.starts < 0:
        parser.error(f"--starts: expected 0 or more, got {given.starts}")
    try:
        bundle = load_bundle(given.bundle)
        results = benchmark(bundle, given.runs)
        if given.starts:
            results["start to first record"] = measure_starts(bundle, given.starts)
    except (BundleError, EncoderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps({"bundle": bundle.name, "runs": given.runs, "starts": given.starts, **results}))
        return 0
    print(f"{bundle.name} {bundle.model_hash.hex()}, one core, {given.runs} runs, {given.starts} starts")
    for what, row in results.items():
        print(f"{what:<21} median {row['median_ms']:7.3f} ms   95th percentile {row['p95_ms']:7.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
