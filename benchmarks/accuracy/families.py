"""Compare generated velocity families with genuine OpenFWI maps.

    python benchmarks/accuracy/families.py --maps ../shared/genuine/maps.npz [--family flatvel_a] [--json]

Prints statistics of genuine and generated maps side by side. Where a family has enough genuine maps, a small
convolutional network is trained to tell them from generated ones, in five folds; an AUC of 0.5 means that it cannot.
The control does the same with two sets of generated maps.

MAPS is an .npz file with one array ``(n, 70, 70)`` of m/s for each family: ``FlatVel_A`` as published, and
``FlatVel_A_8bit`` read back from published figures. The latter are used where the former are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.families import FAMILIES, check_family, generate_map
from physics.files.openfwi_files import family_folder

SURVEY = Acquisition.openfwi()
# Genuine maps needed for the classifier.
LEAST_MAPS = 50
# Fewer genuine maps than this do not give a standard deviation.
FEW_MAPS = 10
FOLDS = 5
LAGS_CELLS = (1, 2, 3, 5, 8)


def draw_maps(family: str, n: int, seed: int) -> np.ndarray:
    """Draw the first ``n`` maps of a sequence: ``(n, nz, nx)`` m/s."""
    return np.stack([generate_map(family, seed, index, SURVEY)[0] for index in range(n)])


def load_genuine(path: Path, family: str) -> tuple[np.ndarray, str]:
    """Load the genuine maps of a family.

    Returns:
        Maps ``(n, nz, nx)`` m/s and what they are: ``published`` or ``8 bit``; no maps where there are none.
    """
    with np.load(path) as arrays:
        for suffix, kind in (("", "published"), ("_8bit", "8 bit")):
            name = family_folder(family) + suffix
            # A few published maps beside more 8-bit ones say less than those.
            if name in arrays and (suffix or len(arrays[name]) >= 4):
                return arrays[name], kind
    return np.empty((0, SURVEY.n_depth, SURVEY.n_width), np.float32), "none"


def statistics(one: np.ndarray) -> dict[str, float]:
    """Measure one map ``(nz, nx)`` m/s."""
    one = one.astype(np.float64)
    nz, nx = one.shape
    down, across = np.diff(one, axis=0), np.diff(one, axis=1)
    cells = np.unique(np.round(one), return_counts=True)[1]
    figures = {
        "layers": float((cells > 0.01 * one.size).sum()),
        "off the layers": float(cells[cells <= 0.01 * one.size].sum() / one.size),
        "top, m/s": float(one[0].mean()),
        "bottom, m/s": float(one[-1].mean()),
        "gradient, m/s a cell": float(np.polyfit(np.arange(nz), one.mean(axis=1), 1)[0]),
        "increasing": float((down >= -1).mean()),
    }
    # Runs of equal velocity down the columns; a run shorter than three cells is the edge of a layer.
    runs, steps = [], []
    for column in one.T:
        starts = np.concatenate([[0], np.flatnonzero(np.abs(np.diff(column)) > 1) + 1, [nz]])
        length = np.diff(starts)
        thick = length >= 3
        runs.extend(length[thick][1:-1])
        steps.extend(np.abs(np.diff(column[starts[:-1][thick]])))
    figures["thickness, cells"] = float(np.median(runs)) if runs else np.nan
    figures["step, m/s"] = float(np.median(steps)) if steps else np.nan
    # Relief of the level half-way between the slowest and the fastest cell.
    middle = (one < (one.min() + one.max()) / 2).sum(axis=0)
    figures["fold height, cells"] = float(np.ptp(middle))
    figures["turning points"] = float(_turns(middle))
    for name, difference in (("dv/dx", across), ("dv/dz", down)):
        figures[f"|{name}| mean"] = float(np.abs(difference).mean())
        figures[f"|{name}| 99 %"] = float(np.percentile(np.abs(difference), 99))
    residual = _without_trend(one)
    spread = residual.std()
    figures["residual, m/s"] = float(spread)
    scaled = residual / max(spread, 1e-9)
    figures["skewness"] = float((scaled**3).mean())
    figures["kurtosis"] = float((scaled**4).mean() - 3)
    for lag in LAGS_CELLS:
        figures[f"correlation {lag} across"] = float((scaled[:, lag:] * scaled[:, : nx - lag]).mean())
        figures[f"correlation {lag} down"] = float((scaled[lag:] * scaled[: nz - lag]).mean())
    return figures


def _turns(line: np.ndarray) -> int:
    """Count the turning points of a line; changes of up to one cell do not count."""
    turns, direction, extreme = 0, 0, line[0]
    for value in line:
        if direction == 0 and abs(value - extreme) > 1:
            direction, extreme = (1 if value > extreme else -1), value
        elif direction and (value - extreme) * direction > 0:
            extreme = value
        elif direction and (extreme - value) * direction > 1:
            turns, direction, extreme = turns + 1, -direction, value
    return turns


def _without_trend(one: np.ndarray) -> np.ndarray:
    """Take the quadratic trend with depth off a map."""
    z = np.linspace(-1, 1, one.shape[0])
    powers = np.repeat(np.stack([z**0, z, z**2], axis=1), one.shape[1], axis=0)
    return (one.ravel() - powers @ np.linalg.lstsq(powers, one.ravel(), rcond=None)[0]).reshape(one.shape)


def compare(genuine: np.ndarray, drawn: np.ndarray) -> list[dict]:
    """Set the statistics side by side.

    Returns:
        A row for each statistic: mean and standard deviation over the maps of both, and the difference of the means
        in genuine standard deviations. Under ten genuine maps do not give one; the larger of both is taken then.
    """
    rows = []
    measured = [[statistics(one) for one in maps] for maps in (genuine, drawn)]
    for name in measured[0][0]:
        sides = [np.array([figures[name] for figures in of]) for of in measured]
        means = [float(np.nanmean(side)) for side in sides]
        spreads = [float(np.nanstd(side)) for side in sides]
        scale = max(spreads) if len(genuine) < FEW_MAPS else spreads[0]
        # Rounding, where every map has the same figure.
        scale = scale if scale > 1e-9 else 0.0
        rows.append(
            {
                "statistic": name,
                "genuine": means[0],
                "genuine_std": spreads[0],
                "drawn": means[1],
                "drawn_std": spreads[1],
                "off": (means[1] - means[0]) / scale if scale else 0.0,
            }
        )
    return rows


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative."""
    order = np.argsort(np.argsort(scores))
    positives = labels == 1
    n, m = positives.sum(), (~positives).sum()
    return float((order[positives].sum() - n * (n - 1) / 2) / (n * m))


def classify(first: np.ndarray, second: np.ndarray, seed: int = 0) -> list[float]:
    """Train a network to tell two sets of maps apart, and test it on maps it has not seen.

    Args:
        first: Maps ``(n, nz, nx)`` m/s.
        second: As many others.
        seed: Seed of the folds and the networks.

    Returns:
        AUC of each fold.
    """
    return [auc(scores, labels) for scores, labels, _ in classify_folds(first, second, seed)]


def classify_folds(
    first: np.ndarray, second: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Do the work of ``classify``: scores, labels (1 = ``second``) and indices of each fold's test maps."""
    import keras

    maps = np.concatenate([first, second])[..., None].astype(np.float32) / 1000.0 - 3.0
    labels = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(seed).permutation(len(maps))
    folds = []
    for fold in range(FOLDS):
        keras.utils.set_random_seed(seed + fold)
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test)
        model = _network(maps.shape[1:])
        model.fit(maps[train], labels[train], batch_size=16, epochs=20, verbose=0)
        folds.append((model.predict(maps[test], verbose=0)[:, 0], labels[test], test))
    return folds


def _network(shape: tuple[int, ...]):
    """Four convolutions over the map and its differences to the neighbours below and to the right."""
    import keras
    from keras import layers

    maps = keras.Input(shape)
    down = layers.ZeroPadding2D(((0, 1), (0, 0)))(maps[:, 1:] - maps[:, :-1])
    right = layers.ZeroPadding2D(((0, 0), (0, 1)))(maps[:, :, 1:] - maps[:, :, :-1])
    x = layers.Concatenate()([maps, 4 * down, 4 * right])
    for width, strides in ((12, 2), (16, 2), (24, 2), (32, 1)):
        x = layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    x = layers.Dense(1, activation="sigmoid")(layers.Dropout(0.3)(x))
    model = keras.Model(maps, x)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, 20 * 20)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-3), "binary_crossentropy")
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=Path, required=True, help="genuine maps (.npz)")
    parser.add_argument("--family", action="append", type=check_family, help="only this family; repeatable")
    parser.add_argument("--drawn", type=int, default=200, help="generated maps per family for the statistics")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the generated maps")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.maps.exists():
        print(
            f"SKIP {given.maps}: not found; expected an .npz file of genuine OpenFWI maps, one array a family"
        )
        return 0
    results = {}
    for family in given.family or FAMILIES:
        genuine, kind = load_genuine(given.maps, family)
        if not len(genuine):
            print(f"SKIP {family}: no genuine maps in {given.maps}")
            continue
        result = {"maps": len(genuine), "kind": kind}
        result["statistics"] = compare(genuine, draw_maps(family, given.drawn, given.seed))
        if len(genuine) >= LEAST_MAPS:
            drawn = draw_maps(family, 2 * len(genuine), given.seed)
            result["auc"] = classify(genuine, drawn[: len(genuine)])
            result["control"] = classify(drawn[len(genuine) :], drawn[: len(genuine)])
        results[family] = result
        if not given.json:
            print_statistics(family, result)
    if given.json:
        print(json.dumps(results))
        return 0
    for family, result in results.items():
        off = sum(abs(row["off"]) > 1 for row in result["statistics"])
        of = len(result["statistics"])
        line = f"{family:<13} {result['maps']:>3} maps  {off:>2} of {of} statistics off by more than 1 sd"
        if "auc" in result:
            means = [np.mean(result[name]) for name in ("auc", "control")]
            spreads = [np.std(result[name]) for name in ("auc", "control")]
            line += f"  AUC {means[0]:.2f} ± {spreads[0]:.2f}, drawn against drawn {means[1]:.2f} ± {spreads[1]:.2f}"
        print(line)
    return 0


def print_statistics(family: str, result: dict) -> None:
    """Print a family's table."""
    print(f"{family} ({result['maps']} genuine maps, {result['kind']})")
    print(f"  {'':<24}{'genuine':>18}{'drawn':>20}{'off, sd':>10}")
    for row in result["statistics"]:
        genuine = f"{row['genuine']:.4g} ± {row['genuine_std']:.3g}"
        drawn = f"{row['drawn']:.4g} ± {row['drawn_std']:.3g}"
        mark = " *" if abs(row["off"]) > 1 else ""
        print(f"  {row['statistic']:<24}{genuine:>18}{drawn:>20}{row['off']:>10.2f}{mark}")


if __name__ == "__main__":
    sys.exit(main())
