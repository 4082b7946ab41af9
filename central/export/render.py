"""Draw maps as pictures, with axes in metres, a perceptual colour map and the received devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from physics.acquisition import Acquisition
from physics.files.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Colours of an uncertainty map end here, so that one cell of thousands of m/s does not make the rest black.
UNCERTAINTY_PERCENTILE = 98.0


@dataclass(frozen=True)
class Row:
    """One event of a comparison; maps ``(nz, nx)``, ``true_mps`` None if the truth is unknown."""

    title: str
    true_mps: np.ndarray | None
    predicted_mps: np.ndarray
    uncertainty_mps: np.ndarray


@dataclass(frozen=True)
class RefinedRow:
    """One event before and after its refinement; maps ``(nz, nx)``, None if there is none."""

    title: str
    true_mps: np.ndarray | None
    first_title: str
    first_mps: np.ndarray
    refined_title: str
    refined_mps: np.ndarray | None


def _figure(rows: int, columns: int):
    # The object interface, not pyplot: several threads may draw at once.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis, image: np.ndarray, acquisition: Acquisition, kind: str):
    from cmcrameri import cm

    limits = {"vmin": acquisition.velocity_min_mps, "vmax": acquisition.velocity_max_mps}
    if kind == "uncertainty":
        limits = {"vmin": 0.0, "vmax": max(float(np.nanpercentile(image, UNCERTAINTY_PERCENTILE)), 1.0)}
    drawn = axis.imshow(
        image,
        extent=acquisition.extent_m,
        cmap=cm.batlow if kind == "velocity" else cm.lajolla,
        interpolation="nearest",
        **limits,
    )
    axis.set(xlabel="distance (m)", ylabel="depth (m)")
    return drawn


def _mark_devices(axis, acquisition: Acquisition, present: Sequence[int]) -> None:
    """Draw a bar per device above the map: dark if received, red outline if missing."""
    for device, receivers in enumerate(acquisition.device_receivers):
        cells = [acquisition.receiver_cells[i] for i in receivers]
        first, last = acquisition.distance_m((min(cells) - 0.5, max(cells) + 0.5))
        here = device in present
        axis.plot(
            [first, last],
            [-0.02 * acquisition.n_depth * acquisition.dx_m] * 2,
            color="#222222" if here else "#cc3311",
            linestyle="-" if here else ":",
            linewidth=4 if here else 2,
            solid_capstyle="butt",
            clip_on=False,
        )


def _save(figure, path: Path) -> None:
    # The centre draws one for each event; a sync would hold up the journal.
    with atomic_write(path, durable=False) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def draw_map(
    path: Path,
    velocity_mps: np.ndarray,
    uncertainty_mps: np.ndarray,
    acquisition: Acquisition,
    present: Sequence[int],
    title: str = "",
) -> None:
    """Draw velocity and uncertainty ``(nz, nx)`` in m/s side by side into a PNG, which appears when complete."""
    figure, ((left, right),) = _figure(1, 2)
    figure.suptitle(title)
    for axis, image, kind in ((left, velocity_mps, "velocity"), (right, uncertainty_mps, "uncertainty")):
        drawn = _show(axis, image, acquisition, kind)
        _mark_devices(axis, acquisition, present)
        extend = "max" if kind == "uncertainty" else "neither"
        figure.colorbar(drawn, ax=axis, label=f"{kind} (m/s)", shrink=0.85, extend=extend)
    _save(figure, path)


def draw_comparison(path: Path, rows: Sequence[Row], acquisition: Acquisition) -> None:
    """Draw true, predicted and uncertainty maps, one event per row, into a PNG, which appears when complete."""
    _save(comparison_figure(rows, acquisition), path)


def comparison_figure(rows: Sequence[Row], acquisition: Acquisition) -> Figure:
    """Draw true, predicted and uncertainty maps, one event a row."""
    figure, axes = _figure(len(rows), 3)
    for row, (true, predicted, uncertainty) in zip(rows, axes, strict=True):
        if row.true_mps is None:
            true.text(0.5, 0.5, "truth not known", ha="center", va="center", transform=true.transAxes)
            true.set_axis_off()
        else:
            _show(true, row.true_mps, acquisition, "velocity")
        true.set_title(f"{row.title}\ntrue" if row.true_mps is not None else row.title, fontsize=9)
        drawn = _show(predicted, row.predicted_mps, acquisition, "velocity")
        predicted.set_title("predicted", fontsize=9)
        figure.colorbar(drawn, ax=predicted, label="velocity (m/s)", shrink=0.85)
        drawn = _show(uncertainty, row.uncertainty_mps, acquisition, "uncertainty")
        uncertainty.set_title("uncertainty", fontsize=9)
        figure.colorbar(drawn, ax=uncertainty, label="m/s", shrink=0.85, extend="max")
    return figure


def draw_refined(path: Path, rows: Sequence[RefinedRow], acquisition: Acquisition) -> None:
    """Draw true, first and refined maps, one event a row, into a PNG, which appears when complete."""
    figure, axes = _figure(len(rows), 3)
    for row, columns in zip(rows, axes, strict=True):
        maps = (
            (row.true_mps, f"{row.title}, true", "truth not known"),
            (row.first_mps, row.first_title, ""),
            (row.refined_mps, row.refined_title, "not refined"),
        )
        for axis, (velocity_mps, title, absent) in zip(columns, maps, strict=True):
            axis.set_title(title, fontsize=8)
            if velocity_mps is None:
                axis.text(0.5, 0.5, absent, ha="center", va="center", transform=axis.transAxes)
                axis.set_axis_off()
            else:
                drawn = _show(axis, velocity_mps, acquisition, "velocity")
        figure.colorbar(drawn, ax=columns, label="velocity (m/s)", shrink=0.85)
    _save(figure, path)
