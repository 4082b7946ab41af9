"""Plot a training run: losses, validation error and learning rate over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.training.monitor import HISTORY


def read_history(run: Path) -> list[dict[str, Any]]:
    """Return the rows of ``run/history.jsonl``; none if the run has made none."""
    path = run / HISTORY
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def column(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return the minutes and values of the rows that have ``key``."""
    found = [(row["elapsed_s"] / 60, row[key]) for row in rows if row.get(key) is not None]
    return [minutes for minutes, _ in found], [value for _, value in found]


def draw_curves(run: Path) -> Path | None:
    """Plot ``run/history.jsonl`` to ``run/curves.png`` and return its path; None if there is no row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_history(run)
    if not rows:
        return None
    figure, (losses, errors, rate) = plt.subplots(
        3, 1, figsize=(7, 7), sharex=True, height_ratios=(3, 3, 1), layout="constrained"
    )
    for axes, key, label in (
        (losses, "loss", "training"),
        (losses, "validation_loss", "validation"),
        (errors, "validation_mae", "validation"),
        (rate, "learning_rate", None),
    ):
        # Markers: a run of one row is a point.
        axes.plot(*column(rows, key), marker=".", label=label)
    losses.set_ylabel("loss")
    errors.set_ylabel("MAE (normalised map)")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("training time (min)")
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
        axes.legend()
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
