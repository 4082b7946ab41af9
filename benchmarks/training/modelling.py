"""How long a gather of five shots and a gradient by its adjoint take, in processor time of one core.

python benchmarks/training/modelling.py [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient
from physics.families import generate_map
from physics.modelling import model_gathers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    acquisition = Acquisition.openfwi()
    earth = generate_map("curvefault_a", 0, 0, acquisition)[None]
    measured = {
        "gather": lambda: model_gathers(earth, acquisition),
        "gradient": lambda: misfit_and_gradient(
            earth[0, 0], acquisition, lambda source, recorded: (0.0, recorded)
        ),
    }
    times_s: dict[str, list[float]] = {name: [] for name in measured}
    # The first run compiles.
    for run in range(given.runs + 1):
        for name, work in measured.items():
            started = time.process_time()
            work()
            if run:
                times_s[name].append(time.process_time() - started)
    results = {name: {"median_cpu_s": float(np.median(rows))} for name, rows in times_s.items()}
    if given.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(f"{name:<10} {row['median_cpu_s']:.3f} s of processor time")


if __name__ == "__main__":
    main()
