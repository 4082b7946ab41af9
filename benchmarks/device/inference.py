"""How long an event takes to compute: device encoder, fusion decoder, and the central InversionNet beside them.

    python benchmarks/device/inference.py [--model ZOO_DIR] [--runs 200] [--json]

One core for each, in one run, in turn; the median is the figure to quote, the 95th percentile says how
noisy the machine was. The encoder's time includes thinning, companding and quantising a float32 part.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np


def measure(work: Callable[[], object], runs: int) -> dict[str, float]:
    for _ in range(5):
        work()
    times_ms = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - started) * 1000)
    return {"median_ms": float(np.median(times_ms)), "p95_ms": float(np.percentile(times_ms, 95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="folder with bundle/ and decoder/")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    from firmware_py.inference.bundle import load_bundle
    from firmware_py.inference.encoder import Encoder
    from models.inversion.compiled import compile_network
    from models.inversion.decoder import load_decoder
    from models.networks.inversionnet import build_inversionnet
    from testbed.run import find_model
    from testbed.samples import load_samples

    model = find_model(given.model)
    encoder, decoder = Encoder(load_bundle(model.bundle)), load_decoder(model.decoder)
    acquisition = decoder.acquisition
    gather = load_samples()[0].gather
    parts = [gather[:, :, list(group)] for group in acquisition.device_receivers]
    latents = np.stack([encoder.encode_recording(part) for part in parts])
    present = np.ones(decoder.n_devices, bool)
    baseline = compile_network(build_inversionnet(acquisition))
    whole = tf.constant(gather.transpose(1, 2, 0)[None])
    results = {
        "encode one device": measure(lambda: encoder.encode_recording(parts[0]), given.runs),
        "decode one event": measure(lambda: decoder.decode(latents, present), given.runs),
        # Its time does not depend on its weights: untrained ones do.
        "InversionNet, one event": measure(lambda: np.asarray(baseline(whole)), max(given.runs // 10, 5)),
    }
    if given.json:
        print(json.dumps(results))
        return
    for what, row in results.items():
        print(f"{what:<26} median {row['median_ms']:8.2f} ms   95th percentile {row['p95_ms']:8.2f} ms")


if __name__ == "__main__":
    main()
