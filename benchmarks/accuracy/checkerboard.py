"""Checkerboard of the decoder: waves that repeat with its patches, in the maps of a test set.

    epic data generate all --count 20 --seed 2000 --out test-set
    python benchmarks/accuracy/checkerboard.py --data test-set [--model epic-small-128]

The decoder draws patches of five cells. A pattern that repeats with them has the periods of 5 and 2.5 cells. Printed is
its root mean square along z and x in m/s: the power at these periods beyond that of their neighbours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import epic
from models.evaluation.checkerboard import pattern_mps
from physics.files.openfwi_files import find_pairs

# Whole waves in 70 cells: periods of 5 and 2.5 cells.
WAVES = (14, 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="epic-small-128")
    given = parser.parse_args()
    model = epic.load_model(given.model)
    predicted, true = [], []
    for pair in find_pairs(given.data, model.acquisition):
        predicted += [model.invert(gather).velocity_mps for gather in pair.gathers()]
        true += list(pair.maps()[:, 0])
    print("| maps | period, cells | along z, m/s | along x, m/s |")
    print("|---|---|---|---|")
    for name, maps in (("predicted", np.stack(predicted)), ("true", np.stack(true))):
        for waves in WAVES:
            z, x = (pattern_mps(maps, axis, waves) for axis in (1, 2))
            print(f"| {name} | {70 / waves:g} | {z:.1f} | {x:.1f} |")


if __name__ == "__main__":
    main()
