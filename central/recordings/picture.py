"""Draw a recording beside the gather modelled from a map, and their residual."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from central.recordings.store import acquisition_of
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Quantile of the amplitudes at which the colours saturate; shows reflections beside the direct wave.
CLIP_QUANTILE = 0.98


def draw_gather(file: Path | IO[bytes], stored: StoredMap, samples: np.ndarray) -> None:
    """Write the figure of ``gather_figure`` as PNG."""
    gather_figure(stored, samples).savefig(file, dpi=90, format="png")


def gather_figure(stored: StoredMap, samples: np.ndarray) -> Figure:
    """Return a figure with a row per shot: recorded, modelled, residual, on one colour scale.

    The gather of the map is modelled with the benchmark's scheme, which takes seconds.

    Args:
        stored: The map through which waves are modelled.
        samples: Recording ``(S, T, R)``; receivers without one are NaN.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from physics.modelling import model_gathers

    acquisition = acquisition_of(stored)
    modelled = np.asarray(model_gathers(stored.velocity_mps[None, None], acquisition, engine="openfwi"))[0]
    residual = samples - modelled
    limit = float(np.nanquantile(np.abs(samples), CLIP_QUANTILE)) or 1.0
    relative = float(np.sqrt(np.nanmean(residual**2) / max(float(np.nanmean(samples**2)), 1e-30)))
    rows = acquisition.n_sources
    figure = Figure(figsize=(10.0, 1.9 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    left_m, right_m = _extent_m(acquisition)
    for shot in range(rows):
        for axis, gather in zip(axes[shot], (samples, modelled, residual), strict=True):
            axis.set_facecolor("#dddddd")
            drawn = axis.imshow(
                gather[shot],
                extent=(left_m, right_m, acquisition.n_time * acquisition.dt_s, 0),
                aspect="auto",
                cmap="seismic",
                vmin=-limit,
                vmax=limit,
                interpolation="nearest",
            )
        axes[shot, 0].set_ylabel(f"shot {shot + 1}\ntime (s)")
    titles = (
        "recorded",
        f"modelled, revision {stored.revision}",
        f"residual, {100 * relative:.0f} % of the recording",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("distance (m)")
    axes[0, 0].set_xlim(acquisition.extent_m[:2])
    figure.colorbar(drawn, ax=axes, label="amplitude", shrink=0.6)
    dead = np.isnan(samples).all(axis=(0, 1))
    missing = [
        str(device)
        for device, receivers in enumerate(acquisition.device_receivers)
        if dead[list(receivers)].all()
    ]
    absent = f"; devices {', '.join(missing)} missing (grey)" if missing else ""
    figure.suptitle(f"survey {stored.survey}, event {stored.event}{absent}")
    return figure


def _extent_m(acquisition: Acquisition) -> tuple[float, float]:
    """Return where the traces begin and end, in metres: half a spacing before the first and after the last receiver."""
    cells = acquisition.receiver_cells
    spacing = (cells[-1] - cells[0]) / (len(cells) - 1) if len(cells) > 1 else 1.0
    left, right = acquisition.distance_m((cells[0] - spacing / 2, cells[-1] + spacing / 2))
    return float(left), float(right)
