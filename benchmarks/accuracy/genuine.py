"""A released model on genuine OpenFWI maps: the first table of docs/results/fidelity.md.

    python benchmarks/accuracy/genuine.py --maps ../shared/genuine/maps.npz [--model models/zoo/epic-small-128]
    python benchmarks/accuracy/genuine.py --data test-set                   # the same table for a generated test set
    further: [--most 40] [--gathers gathers.npz] [--picture genuine.png] [--json]

The gathers of up to --most maps a family are modelled with the benchmark's exact scheme and encoded in int8 as a Linux
device does. MAE, RMSE and SSIM are the benchmark's (MAE 1 is 1500 m/s); the interval is that of 95 % of 1,000 bootstrap
samples. The mean map is the best prediction without a recording: for each map, the mean of the family's other maps.
InversionNet's column is as published, for the whole
benchmark, of networks trained on 24,000 to 60,000 genuine samples of each family. Genuine maps are for measuring only:
nothing is trained on or tuned to them. --gathers keeps the modelled gathers for the next run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released

from firmware_py.inference.companding import thin_samples
from models.data.gathers import load_decimated
from physics.metrics import mae, rmse, ssim
from physics.modelling import model_gathers
from physics.normalise import denormalise_velocity, normalise_velocity

# MAE of InversionNet (Deng et al. 2022, arXiv 2111.02926, table 4).
PUBLISHED_MAE = {
    "flatvel_a": 0.0131,
    "flatvel_b": 0.0352,
    "curvevel_a": 0.0685,
    "curvevel_b": 0.1497,
    "flatfault_a": 0.0172,
    "flatfault_b": 0.1055,
    "curvefault_a": 0.0260,
    "curvefault_b": 0.1646,
    "style_a": 0.0625,
    "style_b": 0.0689,
}
# Of fewer maps than these, a family's error proves nothing.
PROVEN_FROM = 10
BOOTSTRAP_SAMPLES = 1000


def read_maps(path: Path, most: int) -> dict[str, np.ndarray]:
    """Maps ``(n, nz, nx)`` m/s a family, at most ``most`` each, spread over those there are."""
    maps: dict[str, list[np.ndarray]] = {}
    with np.load(path) as content:
        for name in content.files:
            maps.setdefault(name.removesuffix("_8bit").lower(), []).append(content[name].astype(np.float32))
    joined = {family: np.concatenate(parts) for family, parts in sorted(maps.items())}
    return {
        f: m[np.linspace(0, len(m) - 1, min(len(m), most)).round().astype(int)] for f, m in joined.items()
    }


def model_thinned(maps: dict[str, np.ndarray], model: Released, cache: Path | None) -> dict[str, np.ndarray]:
    """Thinned gathers ``(n, T', R, S)`` a family, from ``cache`` where that holds those of these maps."""
    if cache and cache.exists():
        with np.load(cache) as kept:
            if all(f in kept.files and np.array_equal(kept[f"{f}_maps"], m) for f, m in maps.items()):
                return {family: kept[family] for family in maps}
    a = model.decoder.acquisition
    gathers = {}
    for family, velocity_mps in maps.items():
        recorded = [model_gathers(some[None, None], a) for some in velocity_mps]
        gathers[family] = thin_samples(np.concatenate(recorded), model.thin, axis=2).transpose(0, 2, 3, 1)
    if cache:
        np.savez(cache, **gathers, **{f"{family}_maps": m for family, m in maps.items()})
    return gathers


def read_data(folder: Path, model: Released) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Maps m/s and decimated gathers a family of a folder of OpenFWI files."""
    data = load_decimated([folder], model.decoder.acquisition, model.thin)
    chosen = {str(family): data.families == family for family in np.unique(data.families)}
    maps_mps = denormalise_velocity(data.maps, data.acquisition)
    return {f: maps_mps[c] for f, c in chosen.items()}, {f: data.gathers[c] for f, c in chosen.items()}


def measure(maps: dict[str, np.ndarray], gathers: dict[str, np.ndarray], model: Released) -> dict[str, dict]:
    """Figures a family, and of the mean of the families."""
    table, rng = {}, np.random.default_rng(0)
    for family, velocity_mps in maps.items():
        truth = normalise_velocity(velocity_mps, model.decoder.acquisition)
        drawn, _ = model.maps(model.latents(gathers[family]))
        errors = np.abs(drawn - truth).mean(axis=(1, 2))
        resampled = errors[rng.integers(len(errors), size=(BOOTSTRAP_SAMPLES, len(errors)))].mean(axis=1)
        low, high = np.quantile(resampled, (0.025, 0.975))
        table[family] = {
            "n": len(truth),
            "mae": mae(drawn, truth),
            "interval": [float(low), float(high)],
            "rmse": rmse(drawn, truth),
            "ssim": ssim(drawn, truth),
            "mean_map_mae": mean_map_mae(truth),
            "published_mae": PUBLISHED_MAE.get(family),
        }
    names = ("mae", "rmse", "ssim", "mean_map_mae", "published_mae")
    # A family of one map has no mean map.
    mean = {name: float(np.nanmean([row[name] for row in table.values()])) for name in names}
    table["mean of families"] = {"n": sum(row["n"] for row in table.values()), **mean}
    return table


def mean_map_mae(truth: np.ndarray) -> float:
    """MAE of each map predicted by the mean of the others, averaged over maps ``(n, nz, nx)``; NaN for one map."""
    n = len(truth)
    # The distance to the mean of the others is n / (n - 1) times that to the mean of all.
    return float(np.abs(truth - truth.mean(axis=0)).mean()) * n / (n - 1) if n > 1 else float("nan")


def draw(maps: dict[str, np.ndarray], gathers: dict[str, np.ndarray], model: Released, path: Path) -> None:
    """True map, predicted map and uncertainty of the first sample of each family."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from cmcrameri import cm

    figure, axes = plt.subplots(3, len(maps), figsize=(2 * len(maps), 6), layout="constrained")
    for column, (family, velocity_mps) in zip(axes.T, maps.items(), strict=True):
        predicted, uncertainty = model.maps(model.latents(gathers[family][:1]))
        truth = normalise_velocity(velocity_mps[:1], model.decoder.acquisition)
        for axis, image in zip(column, (truth[0], predicted[0], uncertainty[0]), strict=True):
            scale = {"vmin": 0, "vmax": 0.5} if image is uncertainty[0] else {"vmin": -1, "vmax": 1}
            axis.imshow(image, cmap=cm.batlow, **scale)
            axis.set(xticks=[], yticks=[])
        column[0].set_title(family, fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--maps", type=Path)
    source.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--gathers", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.maps and not given.maps.exists():
        print(f"{given.maps}: not found; genuine maps are not part of this project, nothing is measured")
        return
    model = Released(given.model)
    if given.data:
        maps, gathers = read_data(given.data, model)
    else:
        maps = read_maps(given.maps, given.most)
        gathers = model_thinned(maps, model, given.gathers)
    table = measure(maps, gathers, model)
    if given.picture:
        draw(maps, gathers, model, given.picture)
    if given.json:
        print(json.dumps(table).replace("NaN", "null"))
        return
    print("| family | maps | MAE | 95 % | RMSE | SSIM | mean map | InversionNet, published |")
    print("|---|---|---|---|---|---|---|---|")
    for family, row in table.items():
        between = "{:.4f} to {:.4f}".format(*row["interval"]) if "interval" in row else ""
        print(
            f"| {family} | {row['n']} | {row['mae']:.4f} | {between} | {row['rmse']:.4f} | {row['ssim']:.3f} | "
            f"{row['mean_map_mae']:.4f} | {row['published_mae']:.4f} |".replace("nan", "one map")
        )
    families = [row for row in table.values() if "interval" in row]
    with_mean = [row for row in families if row["n"] > 1]
    proven = [row for row in families if row["n"] >= PROVEN_FROM]
    halved = sum(2 * row["mae"] <= row["mean_map_mae"] for row in with_mean)
    ahead = sum(row["mae"] <= row["published_mae"] for row in proven)
    print(
        f"Better than the mean map by a factor of two: {halved} of {len(with_mean)} families. "
        f"At or below the published InversionNet: {ahead} of {len(proven)} with {PROVEN_FROM} maps or more."
    )


if __name__ == "__main__":
    main()
