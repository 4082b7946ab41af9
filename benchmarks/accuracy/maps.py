"""Best, median and worst map of each family beside the true map.

    python benchmarks/accuracy/maps.py --data held-out [--model models/zoo/epic-small-128] [--picture maps.png] [--json]

Maps are ranked by MAE (1 is half the velocity range). A released model predicts them from int8 latents of all devices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released
from velocities import draw_velocities

from models.data.gathers import DecimatedSet, load_decimated
from physics.metrics import ssim
from physics.normalise import denormalise_velocity

PLACES = ("best", "median", "worst")


def choose(drawn: np.ndarray, held_out: DecimatedSet) -> list[dict]:
    """Return a row for each family and place: the ``sample`` at that place, its MAE and SSIM."""
    errors = np.abs(drawn - held_out.maps).mean(axis=(1, 2))
    rows = []
    for family in sorted(set(held_out.families)):
        of_family = np.flatnonzero(held_out.families == family)
        ordered = of_family[np.argsort(errors[of_family])]
        for place, sample in zip(PLACES, (ordered[0], ordered[len(ordered) // 2], ordered[-1]), strict=True):
            rows.append(
                {
                    "family": str(family),
                    "place": place,
                    "sample": int(sample),
                    "mae": float(errors[sample]),
                    "ssim": ssim(drawn[sample], held_out.maps[sample]),
                }
            )
    return rows


def draw(rows: list[dict], drawn: np.ndarray, held_out: DecimatedSet, path: Path) -> None:
    """Draw a row for each family: true and predicted map, three times."""
    a = held_out.acquisition
    pairs: dict[str, list[tuple[str, np.ndarray]]] = {}
    for row in rows:
        true, predicted = (denormalise_velocity(maps[row["sample"]], a) for maps in (held_out.maps, drawn))
        pairs.setdefault(row["family"], []).extend(
            [(f"{row['place']}: true", true), (f"MAE {row['mae']:.3f}, SSIM {row['ssim']:.2f}", predicted)]
        )
    draw_velocities(list(pairs.values()), a, path, (1.75, 1.95), list(pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = Released(given.model)
    held_out = load_decimated(given.data, model.decoder.acquisition, model.thin)
    drawn, _ = model.maps(model.latents(held_out.gathers))
    rows = choose(drawn, held_out)
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(
                f"{row['family']:<13} {row['place']:<7} sample {row['sample']:>3}: {row['mae']:.4f} {row['ssim']:.3f}"
            )
    if given.picture:
        draw(rows, drawn, held_out, given.picture)


if __name__ == "__main__":
    main()
