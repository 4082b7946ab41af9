"""Draw a fetched gather beside the modelled one of the event's newest map, and their residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from central.recordings.gathers import FetchedGather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Quantile of the amplitudes at which the colours saturate; shows reflections beside the direct wave.
CLIP_QUANTILE = 0.98


def gather_figure(gather: FetchedGather) -> Figure:
    """Return a figure with a row per shot: recorded, modelled, residual, on one colour scale.

    The gather of the map is modelled with the benchmark's scheme, which takes seconds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from physics.modelling import model_gathers

    acquisition = gather.acquisition
    velocity_mps = gather.stored.velocity_mps[None, None]
    modelled = np.asarray(model_gathers(velocity_mps, acquisition, engine="openfwi"))[0]
    residual = gather.samples - modelled
    limit = float(np.nanquantile(np.abs(gather.samples), CLIP_QUANTILE)) or 1.0
    relative = float(np.sqrt(np.nanmean(residual**2) / max(float(np.nanmean(gather.samples**2)), 1e-30)))
    rows = acquisition.n_sources
    figure = Figure(figsize=(10.0, 1.9 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    width_m = acquisition.n_width * acquisition.dx_m
    for shot in range(rows):
        for axis, samples in zip(axes[shot], (gather.samples, modelled, residual), strict=True):
            axis.set_facecolor("#dddddd")
            drawn = axis.imshow(
                samples[shot],
                extent=(0, width_m, acquisition.n_time * acquisition.dt_s, 0),
                aspect="auto",
                cmap="seismic",
                vmin=-limit,
                vmax=limit,
                interpolation="nearest",
            )
        axes[shot, 0].set_ylabel(f"shot {shot + 1}\ntime (s)")
    revision = gather.stored.revision
    titles = (
        "recorded",
        f"modelled, revision {revision}",
        f"residual, {100 * relative:.0f} % of the recording",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("distance (m)")
    figure.colorbar(drawn, ax=axes, label="amplitude", shrink=0.6)
    missing = gather.provenance["missing_devices"]
    absent = f"; devices {', '.join(map(str, missing))} missing (grey)" if missing else ""
    figure.suptitle(f"{gather.name}{absent}")
    return figure
