"""A gather from elsewhere, without a map: what the released model makes of it, and whether the waves agree.

    python benchmarks/genuine.py GATHER.npy [--model models/zoo/epic-small-128] [--picture genuine.png] [--json]

GATHER is one gather (sources, samples, receivers) of the model's survey. Its map is predicted from int8 latents, its
gather modelled with the benchmark's scheme, and held against what was recorded: the misfit is the root mean square of
the difference over that of the recording, for all of it, and for what comes after the direct wave (the first arrival
of the uppermost velocity, and a wavelet's length), where the earth below speaks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released

from firmware_py.compand import thin_samples
from physics.acquisition import Acquisition
from physics.modelling import model_gathers


def after_direct_wave(velocity_mps: np.ndarray, a: Acquisition) -> np.ndarray:
    """Which samples ``(S, T, R)`` come later than the direct wave along the top of ``velocity_mps (nz, nx)``."""
    slowest_mps = float(velocity_mps[: a.receiver_row + 3].min())
    offsets_m = np.abs(np.subtract.outer(a.source_cells, a.receiver_cells)) * a.dx_m
    wavelet_s = 2.5 / a.peak_frequency_hz
    times_s = np.arange(a.n_time) * a.dt_s
    return times_s[None, :, None] > (offsets_m / slowest_mps + wavelet_s)[:, None, :]


def misfit(modelled: np.ndarray, recorded: np.ndarray, where: np.ndarray | bool = True) -> float:
    difference = np.where(where, modelled - recorded, 0.0)
    return float(np.sqrt(np.square(difference).sum() / np.square(np.where(where, recorded, 0.0)).sum()))


def benchmark(gather: np.ndarray, model: Released) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Figures, the map and its uncertainty in m/s ``(nz, nx)``, and the modelled gather."""
    a, limit = model.decoder.acquisition, model.limit
    thinned = thin_samples(gather, model.thin, axis=1).transpose(1, 2, 0)[None]
    latents = model.latents(thinned)
    velocity_mps, uncertainty_mps = model.decoder.decode(latents[0], np.ones(a.n_devices, bool))
    modelled = model_gathers(velocity_mps[None], a)[0]
    below = after_direct_wave(velocity_mps[0], a)
    again = model.latents(thin_samples(modelled, model.thin, axis=1).transpose(1, 2, 0)[None])
    figures = {
        "score": float(model.scores(latents)[0]),
        "limit": limit,
        "uncertainty_mps": float(uncertainty_mps.mean()),
        "misfit": misfit(modelled, gather),
        "misfit_below": misfit(modelled, gather, below),
        "latent_rms_steps": float(np.sqrt(np.mean(np.square(again.astype(float) - latents)))),
    }
    return figures, velocity_mps[0], uncertainty_mps[0], modelled


def draw(
    gather: np.ndarray,
    velocity_mps: np.ndarray,
    uncertainty_mps: np.ndarray,
    modelled: np.ndarray,
    a: Acquisition,
    path: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from cmcrameri import cm

    figure, axes = plt.subplots(1, 5, figsize=(15, 3.8), layout="constrained")
    extent_m = (0, a.n_width * a.dx_m, a.n_depth * a.dx_m, 0)
    for axis, values, title in zip(
        axes, (velocity_mps, uncertainty_mps), ("map", "uncertainty"), strict=False
    ):
        shown = axis.imshow(values, extent=extent_m, cmap=cm.batlow if title == "map" else cm.lajolla)
        axis.set(title=f"{title}, m/s", xlabel="x (m)", ylabel="depth (m)")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    shot = a.n_sources // 2
    seconds = a.n_time * a.dt_s
    strength = float(np.quantile(np.abs(gather[shot]), 0.98))
    traces = {"recorded": gather[shot], "modelled": modelled[shot], "difference": (modelled - gather)[shot]}
    for axis, (title, values) in zip(axes[2:], traces.items(), strict=True):
        extent = (0, a.n_width * a.dx_m, seconds, 0)
        axis.imshow(values, extent=extent, aspect="auto", cmap=cm.vik, vmin=-strength, vmax=strength)
        axis.set(title=f"{title}, shot {shot + 1}", xlabel="x (m)", ylabel="time (s)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gather", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = Released(given.model)
    gather = np.load(given.gather).astype(np.float32)
    if gather.shape != model.decoder.acquisition.gather_shape:
        raise SystemExit(
            f"{given.gather}: expected {model.decoder.acquisition.gather_shape}, got {gather.shape}"
        )
    figures, velocity_mps, uncertainty_mps, modelled = benchmark(gather, model)
    if given.picture:
        draw(gather, velocity_mps, uncertainty_mps, modelled, model.decoder.acquisition, given.picture)
    if given.json:
        print(json.dumps(figures))
        return
    print(
        f"score {figures['score']:.2f} (limit {figures['limit']:.2f}), "
        f"uncertainty {figures['uncertainty_mps']:.0f} m/s; "
        f"misfit of the modelled gather {figures['misfit']:.1%}, after the direct wave {figures['misfit_below']:.1%}; "
        f"its latents {figures['latent_rms_steps']:.1f} steps off"
    )


if __name__ == "__main__":
    main()
