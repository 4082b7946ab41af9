"""Maps of spreads that lack receivers: error, stated uncertainty and flags, on the shipped samples.

    python benchmarks/accuracy/sparse_spread.py [--model epic-small-128]

A receiver that is lacking is silent for all shots, as `epic data import --allow-silent` writes it.
"""

from __future__ import annotations

import argparse

import numpy as np

import epic
from testbed.samples import load_samples

RECEIVERS = np.arange(70)
SPREADS = {
    "whole": RECEIVERS >= 0,
    "every second receiver": RECEIVERS % 2 == 0,
    "every third receiver": RECEIVERS % 3 == 0,
    "left half": RECEIVERS < 35,
    "left third": RECEIVERS < 24,
    "middle third": (RECEIVERS >= 23) & (RECEIVERS < 47),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="epic-small-128")
    model = epic.load_model(parser.parse_args().model)
    print("| spread | error, m/s | uncertainty, m/s | flagged |")
    print("|---|---|---|---|")
    for name, live in SPREADS.items():
        errors, uncertainties, flagged = [], [], 0
        for sample in load_samples():
            result = model.invert(np.where(live, sample.gather, 0))
            errors.append(np.abs(result.velocity_mps - sample.map_mps).mean())
            uncertainties.append(result.uncertainty_mps.mean())
            flagged += bool(result.flags)
        print(
            f"| {name} | {np.mean(errors):.0f} | {np.mean(uncertainties):.0f} | {flagged} of {len(errors)} |"
        )


if __name__ == "__main__":
    main()
