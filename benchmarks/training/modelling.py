"""How long five shots take to model, both of the processor's engines in one run, one core each.

python benchmarks/training/modelling.py [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

ENGINES = ("openfwi", "deepwave")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    from physics.acquisition import Acquisition
    from physics.families import generate_map
    from physics.modelling import model_gathers

    acquisition = Acquisition.openfwi()
    earth = generate_map("curvefault_a", 0, 0, acquisition)[None]
    times_s: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for engine in ENGINES:
        model_gathers(earth, acquisition, engine)
    # In turn, so that a machine that slows down slows both.
    for _ in range(given.runs):
        for engine in ENGINES:
            started = time.process_time()
            model_gathers(earth, acquisition, engine)
            times_s[engine].append(time.process_time() - started)
    results = {engine: {"median_cpu_s": float(np.median(rows))} for engine, rows in times_s.items()}
    if given.json:
        print(json.dumps(results))
        return
    for engine, row in results.items():
        print(f"{engine:<10} {row['median_cpu_s']:.3f} s of processor time a five-shot sample")


if __name__ == "__main__":
    main()
