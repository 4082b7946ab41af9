"""Compare finished runs on the same test data: errors, bytes on the links, model sizes, work on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.data.gathers import DecimatedSet
from models.errors import TrainingError
from models.evaluation.evaluate import check_run, load_run
from models.evaluation.macs import count_macs
from models.evaluation.prediction import predict
from models.evaluation.scores import score
from models.networks.inversionnet import count_parameters
from models.networks.split import SplitInversionNet
from models.recipes import recipe_of
from models.training.curves import column, read_history
from physics.normalise import denormalise_velocity

PICTURE_FORMATS = (".png", ".pdf", ".svg")
# Samples whose maps the picture shows, each of another family if there are as many.
SHOWN_SAMPLES = 3


@dataclass(frozen=True)
class Compared:
    """Results of one run.

    Attributes:
        families: Errors by family, see ``models.evaluation.scores.score``.
        device_macs: Multiply-accumulates of one device for one event.
        run: Run folder.
        maps: Predicted maps of the shown samples, ``(n, nz, nx)``, normalised.

    Bytes are payloads of all devices together.
    """

    name: str
    families: dict[str, dict[str, float]]
    bytes_per_event: int
    parameters: int
    device_macs: int
    run: Path
    maps: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        names = ("name", "families", "bytes_per_event", "parameters", "device_macs")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Comparison:
    """Results of all runs.

    Attributes:
        test_set: The test data.
        shown: Indices of the shown samples.
    """

    rows: list[Compared]
    test_set: DecimatedSet
    shown: np.ndarray


def compare_runs(runs: list[Path], data: list[Path], missing: tuple[int, ...] = ()) -> Comparison:
    """Score every run of ``runs`` on ``data`` in float; an InversionNet also split, with int8 activations.

    Every run is checked before the data are loaded. Raises the errors of ``models.evaluation.evaluate.evaluate_run``.
    """
    for run in runs:
        check_run(run, data, missing)
    rows: list[Compared] = []
    for run in runs:
        found = load_run(run, data, missing)
        a, kind = found.held_out.acquisition, found.config.kind
        parameters = count_parameters(found.network)
        cost = recipe_of(kind).account(found.parts, a)
        candidates = [(run.name, found.network, cost.bytes_per_event, cost.device_macs)]
        if kind == "inversionnet":
            split = SplitInversionNet(found.network, a)
            sent = a.n_devices * split.bytes_per_device
            candidates.append((f"{run.name}, split", split, sent, count_macs(split.device)))
        indices = np.arange(len(found.held_out))
        shown = _choose_shown(found.held_out.families)
        for name, network, n_bytes, macs in candidates:
            maps = predict(network, found.batches, indices)[..., 0]
            families = score(maps, found.held_out, indices)
            rows.append(Compared(name, families, n_bytes, parameters, macs, run, maps[shown]))
    return Comparison(rows, found.held_out, shown)


def _choose_shown(families: np.ndarray) -> np.ndarray:
    """Return the first sample of each family, then others, ``SHOWN_SAMPLES`` at most."""
    _, first = np.unique(families, return_index=True)
    others = np.setdiff1d(np.arange(len(families)), first)
    return np.concatenate([np.sort(first), others])[:SHOWN_SAMPLES]


def check_picture(path: Path) -> None:
    """Raise ``TrainingError`` unless the name of ``path`` ends in a format of pictures."""
    if path.suffix not in PICTURE_FORMATS:
        raise TrainingError(f"{path}: expected a name that ends in {', '.join(PICTURE_FORMATS)}")


def draw_comparison(compared: Comparison, path: Path) -> None:
    """Write a picture of validation errors over time, test errors by family, and maps of some samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, n_shown = compared.rows, len(compared.shown)
    figure = plt.figure(figsize=(max(10, 2.2 * (len(rows) + 1)), 4 + 2 * n_shown), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(4, 2 * n_shown))
    over_time, by_family = above.subplots(1, 2, width_ratios=(2, 3))
    for run in dict.fromkeys(row.run for row in rows):
        over_time.plot(*column(read_history(run), "validation_mae"), marker=".", label=run.name)
    over_time.set(xlabel="training time (min)", ylabel="MAE (normalised map)", title="validation set")
    over_time.grid(alpha=0.3)
    over_time.legend()
    _draw_errors(by_family, rows)
    _draw_maps(below, compared)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_errors(axes: Any, rows: list[Compared]) -> None:
    names = list(rows[0].families)
    places, width = np.arange(len(names)), 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = [row.families[name]["mae"] for name in names]
        axes.bar(places + (i - (len(rows) - 1) / 2) * width, values, width, label=row.name)
    means = [rows[0].families[name]["mean_map_mae"] for name in names]
    axes.hlines(means, places - 0.4, places + 0.4, "black", "dashed", label="mean map")
    axes.set_xticks(places, names, rotation=30, ha="right")
    axes.set(ylabel="MAE (normalised map)", title="test data")
    axes.legend()


def _draw_maps(figure: Any, compared: Comparison) -> None:
    data = compared.test_set
    a = data.acquisition
    columns = [("true", data.maps[compared.shown]), *((row.name, row.maps) for row in compared.rows)]
    axes = figure.subplots(len(compared.shown), len(columns), squeeze=False)
    for j, (name, maps) in enumerate(columns):
        axes[0, j].set_title(name)
        for i, sample in enumerate(compared.shown):
            image = axes[i, j].imshow(
                denormalise_velocity(maps[i], a),
                cmap="viridis",
                vmin=a.velocity_min_mps,
                vmax=a.velocity_max_mps,
                extent=a.extent_m,
            )
            axes[i, j].set(xticks=[], yticks=[])
            if j == 0:
                axes[i, j].set_ylabel(f"{data.families[sample]} {sample}")
    figure.colorbar(image, ax=axes, label="velocity (m/s)")
