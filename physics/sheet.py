"""A contact sheet of the ten velocity families."""

from __future__ import annotations

from pathlib import Path

from physics.acquisition import Acquisition
from physics.families import FAMILIES, generate_map


def draw_sheet(out: Path, seed: int, columns: int, acquisition: Acquisition) -> None:
    """Draw the first ``columns`` maps of every family's sequence for ``seed`` into the PNG ``out``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from cmcrameri import cm

    figure, axes = plt.subplots(
        len(FAMILIES),
        columns,
        figsize=(1.3 * columns + 1.2, 1.3 * len(FAMILIES)),
        squeeze=False,
        layout="constrained",
    )
    for row, family in zip(axes, FAMILIES, strict=True):
        for index, axis in enumerate(row):
            image = axis.imshow(
                generate_map(family, seed, index, acquisition)[0],
                vmin=acquisition.velocity_min_mps,
                vmax=acquisition.velocity_max_mps,
                cmap=cm.batlow,
            )
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(family, rotation=0, ha="right", va="center")
    figure.colorbar(image, ax=axes, shrink=0.4, label="velocity (m/s)")
    figure.savefig(out, dpi=90)
    plt.close(figure)
