"""The best, the median and the worst map of each family, beside the true one: what an error looks like.

    python benchmarks/maps.py --data held-out [--model models/zoo/epic-small-128] [--picture maps.png] [--json]

By the map's MAE (1 is half the velocity range), drawn by a released model from int8 latents of all devices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released

from models.data import ThinnedSet, load_thinned
from physics.metrics import ssim
from physics.normalise import denormalise_velocity

PLACES = ("best", "median", "worst")


def choose(drawn: np.ndarray, held_out: ThinnedSet) -> list[dict]:
    """A row a family and place, with the ``sample`` of that place, its MAE and SSIM."""
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


def draw(rows: list[dict], drawn: np.ndarray, held_out: ThinnedSet, path: Path) -> None:
    """A row a family: true and predicted, three times."""
    from cmcrameri import cm
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    a = held_out.acquisition
    n_families, columns = len(rows) // len(PLACES), 2 * len(PLACES)
    figure = Figure(figsize=(1.75 * columns + 1.0, 1.95 * n_families), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_families, columns, squeeze=False, sharex=True, sharey=True)
    extent_m = (0, a.n_width * a.dx_m, a.n_depth * a.dx_m, 0)
    for number, row in enumerate(rows):
        line, place = divmod(number, len(PLACES))
        pair = axes[line][2 * place : 2 * place + 2]
        maps = (held_out.maps[row["sample"]], drawn[row["sample"]])
        titles = (f"{row['place']}: true", f"MAE {row['mae']:.3f}, SSIM {row['ssim']:.2f}")
        for axis, values, title in zip(pair, maps, titles, strict=True):
            low, high = a.velocity_min_mps, a.velocity_max_mps
            velocity_mps = denormalise_velocity(values, a)
            shown = axis.imshow(velocity_mps, extent=extent_m, cmap=cm.batlow, vmin=low, vmax=high)
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=7)
        if place == 0:
            pair[0].set_ylabel(f"{row['family']}\ndepth (m)", fontsize=8)
    figure.colorbar(shown, ax=axes, label="velocity (m/s)", shrink=0.3, aspect=40)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = Released(given.model)
    held_out = load_thinned(given.data, model.decoder.acquisition, model.thin)
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
