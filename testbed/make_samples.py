"""``python -m testbed.make_samples --data DIR``: make the shipped samples from a test data set.

The released file came from ``epic data generate all --count 20 --seed 2000 --engine openfwi --out DIR``; training uses
other seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs
from testbed.samples import SHIPPED, Sample, write_samples

PER_FAMILY = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the first samples of each family for shipping.")
    parser.add_argument("--data", type=Path, required=True, help="data set folder (OpenFWI layout)")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args()
    pairs = find_pairs(given.data, Acquisition.openfwi())
    # Interleave the families, so that the first ten events show all ten.
    samples = [
        Sample(pair.family, np.asarray(pair.gathers()[i]), np.asarray(pair.maps()[i, 0]))
        for i in range(PER_FAMILY)
        for pair in pairs
    ]
    write_samples(given.out, samples)
    print(f"{len(samples)} samples in {given.out} ({given.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
