"""Pictures of velocity maps side by side, on one scale: what several benchmarks draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition


def draw_velocities(
    rows: list[list[tuple[str, np.ndarray]]],
    a: Acquisition,
    path: Path,
    inches: tuple[float, float],
    labels: list[str] | None = None,
) -> None:
    """``rows`` of titles and maps ``(nz, nx)`` in m/s, each map ``inches`` wide and high; ``labels`` of the rows."""
    from cmcrameri import cm
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(rows[0])
    figure = Figure(figsize=(inches[0] * columns + 1.0, inches[1] * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    low, high = a.velocity_min_mps, a.velocity_max_mps
    for line, label, row in zip(axes, labels or [""] * len(rows), rows, strict=True):
        for axis, (title, velocity_mps) in zip(line, row, strict=True):
            shown = axis.imshow(velocity_mps, extent=a.extent_m, cmap=cm.batlow, vmin=low, vmax=high)
            axis.set_title(title, fontsize=9)
        line[0].set_ylabel(f"{label}\ndepth (m)".lstrip())
    figure.colorbar(shown, ax=axes, label="velocity (m/s)", shrink=0.5, aspect=40)
    figure.savefig(path, dpi=80)
