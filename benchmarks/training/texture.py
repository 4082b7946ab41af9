"""Is a network short of samples or of training? Its errors of samples that it learnt from beside those that it did
not, how much of the texture of the Style families it draws at which depth, and what more of it would be worth: errors
of the true maps with their texture blurred.

python benchmarks/training/texture.py RUN [RUN ...] --data held-out [--learnt 1500] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.data.gathers import DecimatedSet, load_decimated
from models.evaluation.evaluate import load_run
from models.evaluation.prediction import predict
from models.evaluation.scores import score
from models.recipes import recipe_of
from models.training.run import split_validation
from models.training.run_config import read_config
from physics.metrics import mae, ssim

BANDS = 5
STYLES = ("style_a", "style_b")
BLURS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0)


def benchmark(run: Path, data: list[Path], learnt: int) -> dict:
    """Return figures of a run.

    ``families``: MAE and SSIM by family, of ``learnt`` training samples and of the test set. ``texture``: share of the
    Style test maps' texture that is predicted, by band of depth, top first (``texture_drawn``). ``blurred``: share of
    texture left, MAE and SSIM of true Style maps whose texture is blurred over ``BLURS`` cells.
    """
    found = load_run(run, data)
    config = read_config(run)
    # The last training set is by the exact scheme, like the test set.
    config = replace(config, data=config.data[-1:])
    seen = load_decimated([Path(config.data[0])], found.held_out.acquisition, config.thin)
    _, training = split_validation(len(seen))
    some = training[:: max(1, len(training) // learnt)]
    drawn_learnt = predict(found.network, recipe_of(config.kind).make_batches(config, seen), some)[..., 0]
    of_learnt = score(drawn_learnt, seen, some)
    every = np.arange(len(found.held_out))
    drawn = predict(found.network, found.batches, every)[..., 0]
    of_held_out = score(drawn, found.held_out, every)
    return {
        "learnt": len(some),
        "families": {
            family: {
                error: [of_learnt[family][error], of_held_out[family][error]] for error in ("mae", "ssim")
            }
            for family in of_held_out
        },
        "texture": {family: texture_drawn(*_of(family, drawn, found.held_out)) for family in STYLES},
        "blurred": {family: blurred(_of(family, drawn, found.held_out)[1]) for family in STYLES},
    }


def _of(family: str, drawn: np.ndarray, decimated: DecimatedSet) -> tuple[np.ndarray, np.ndarray]:
    chosen = decimated.families == family
    return drawn[chosen], decimated.maps[chosen]


def texture_drawn(drawn: np.ndarray, maps: np.ndarray) -> list[float]:
    """Return the share of the variance within rows of ``maps (n, nz, nx)`` that ``drawn`` explains, in ``BANDS`` bands.

    0 is the trend with depth alone, 1 the map.
    """
    shares = []
    for rows in np.array_split(np.arange(maps.shape[1]), BANDS):
        texture, of_drawn = (m[:, rows] - m[:, rows].mean(axis=2, keepdims=True) for m in (maps, drawn))
        shares.append(float(1 - np.square(texture - of_drawn).sum() / np.square(texture).sum()))
    return shares


def blurred(maps: np.ndarray) -> list[list[float]]:
    """Return share of variance left, MAE and SSIM of ``maps (n, nz, nx)`` with texture blurred over each of ``BLURS``.

    Texture is the difference to the mean of the row.
    """
    trend = maps.mean(axis=2, keepdims=True)
    away = np.subtract.outer(np.arange(maps.shape[1]), np.arange(maps.shape[1]))
    rows = []
    for cells in BLURS:
        weights = np.exp(-np.square(away / cells) / 2)
        weights /= weights.sum(axis=1, keepdims=True)
        drawn = trend + weights @ (maps - trend) @ weights.T
        left = 1 - np.square(drawn - maps).sum() / np.square(maps - trend).sum()
        rows.append([float(left), mae(drawn, maps), ssim(drawn, maps)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--learnt", type=int, default=1500)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = {run.name: benchmark(run, given.data, given.learnt) for run in given.runs}
    if given.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(f"{name}: MAE and SSIM of {row['learnt']} samples learnt from, and of the held-out ones")
        for family, errors in row["families"].items():
            (mae, mae_out), (ssim, ssim_out) = errors["mae"], errors["ssim"]
            print(f"  {family:<13} {mae:.4f} {ssim:.3f}   {mae_out:.4f} {ssim_out:.3f}")
        for family, shares in row["texture"].items():
            bands = "  ".join(f"{share:.3f}" for share in shares)
            print(f"  texture drawn of {family}, by depth: {bands}")
    # Of the maps alone: the same for every run.
    for family, errors in next(iter(rows.values()))["blurred"].items():
        print(f"true maps of {family}, their texture blurred over cells: left of it, MAE, SSIM")
        for cells, (left, off, like) in zip(BLURS, errors, strict=True):
            print(f"  {cells:<4} {left:.2f}  {off:.4f} {like:.3f}")


if __name__ == "__main__":
    main()
