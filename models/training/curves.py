"""Plot a training run: loss, validation error and learning rate over time."""

from __future__ import annotations

import json
from pathlib import Path


def draw_curves(run: Path) -> Path:
    """Plot ``run/history.jsonl`` to ``run/curves.png`` and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    minutes = [row["elapsed_s"] / 60 for row in rows]
    figure, (errors, rate) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    errors.plot(minutes, [row["loss"] for row in rows], label="training loss")
    errors.plot(minutes, [row.get("validation_mae") for row in rows], label="watched samples, MAE")
    errors.set_ylabel("normalised (1 = 1500 m/s)")
    errors.legend()
    errors.grid(alpha=0.3)
    rate.plot(minutes, [row["learning_rate"] for row in rows], color="grey")
    rate.set_xlabel("training time (min)")
    rate.set_ylabel("learning rate")
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
