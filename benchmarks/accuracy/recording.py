"""Predict the map of a gather whose true map is unknown, and compare its modelled gather with the recording.

    python benchmarks/accuracy/recording.py GATHER.npy [--model models/zoo/epic-small-128] [--iterations 40]
                                              [--picture genuine.png] [--json]

GATHER is one gather (sources, samples, receivers) of the model's survey. Its map is predicted from int8 latents, and a
gather is modelled through the map with the benchmark's scheme. The misfit is the root mean square of the difference
over that of the recording. It is given for the whole record and for the part after the direct wave (first arrival at
the uppermost velocity, plus a wavelet's length), which holds the reflections. With --iterations the map is then refined
by the recording, as `epic central refine --gather` does, and compared again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from trust import Released

from firmware_py.inference.companding import thin_samples
from models.inversion.waveform import invert
from physics.acquisition import Acquisition
from physics.modelling import model_gathers


def after_direct_wave(velocity_mps: np.ndarray, a: Acquisition) -> np.ndarray:
    """Return a mask ``(S, T, R)`` of the samples after the direct wave along the top of ``velocity_mps (nz, nx)``."""
    slowest_mps = float(velocity_mps[: a.receiver_row + 3].min())
    offsets_m = np.abs(np.subtract.outer(a.source_cells, a.receiver_cells)) * a.dx_m
    wavelet_s = 2.5 / a.peak_frequency_hz
    times_s = np.arange(a.n_time) * a.dt_s
    return times_s[None, :, None] > (offsets_m / slowest_mps + wavelet_s)[:, None, :]


def misfit(modelled: np.ndarray, recorded: np.ndarray, where: np.ndarray | bool = True) -> float:
    difference = np.where(where, modelled - recorded, 0.0)
    return float(np.sqrt(np.square(difference).sum() / np.square(np.where(where, recorded, 0.0)).sum()))


def benchmark(
    gather: np.ndarray, model: Released, iterations: int
) -> tuple[dict, list[np.ndarray], list[np.ndarray]]:
    """Figures; the map, its uncertainty and, with ``iterations``, the refined map, in m/s ``(nz, nx)``; the gathers
    modelled through the maps."""
    a, limit = model.decoder.acquisition, model.limit
    decimated = thin_samples(gather, model.thin, axis=1).transpose(1, 2, 0)[None]
    latents = model.latents(decimated)
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
    maps, gathers = [velocity_mps[0], uncertainty_mps[0]], [modelled]
    if iterations:
        began_s = time.perf_counter()
        refined = invert(maps[0], maps[1], gather, a, iterations)
        gathers.append(model_gathers(refined.velocity_mps[None, None], a)[0])
        again = model.latents(thin_samples(gathers[1], model.thin, axis=1).transpose(1, 2, 0)[None])
        figures["refined"] = {
            "iterations": refined.iterations,
            "seconds": time.perf_counter() - began_s,
            "misfit": misfit(gathers[1], gather),
            "misfit_below": misfit(gathers[1], gather, below),
            "latent_rms_steps": float(np.sqrt(np.mean(np.square(again.astype(float) - latents)))),
        }
        maps.append(refined.velocity_mps)
    return figures, maps, gathers


def draw(
    gather: np.ndarray, maps: list[np.ndarray], gathers: list[np.ndarray], a: Acquisition, path: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from cmcrameri import cm

    figure, axes = plt.subplots(
        1,
        len(maps) + len(gathers) + 1,
        figsize=(3 * (len(maps) + len(gathers) + 1), 3.8),
        layout="constrained",
    )
    velocities = maps[::2]
    limits = min(map(np.min, velocities)), max(map(np.max, velocities))
    for axis, values, title in zip(axes, maps, ("map", "uncertainty", "refined map"), strict=False):
        if title == "uncertainty":
            shown = axis.imshow(values, extent=a.extent_m, cmap=cm.lajolla)
        else:
            shown = axis.imshow(values, extent=a.extent_m, cmap=cm.batlow, vmin=limits[0], vmax=limits[1])
        axis.set(title=f"{title}, m/s", xlabel="x (m)", ylabel="depth (m)")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    shot = a.n_sources // 2
    seconds = a.n_time * a.dt_s
    strength = float(np.quantile(np.abs(gather[shot]), 0.98))
    off = [(modelled - gather)[shot] for modelled in gathers]
    traces = dict(zip(("recorded", "map's difference", "refined map's"), (gather[shot], *off), strict=False))
    for axis, (title, values) in zip(axes[len(maps) :], traces.items(), strict=True):
        extent = (*a.extent_m[:2], seconds, 0)
        axis.imshow(values, extent=extent, aspect="auto", cmap=cm.vik, vmin=-strength, vmax=strength)
        axis.set(title=f"{title}, shot {shot + 1}", xlabel="x (m)", ylabel="time (s)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gather", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--iterations", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = Released(given.model)
    gather = np.load(given.gather).astype(np.float32)
    if gather.shape != model.decoder.acquisition.gather_shape:
        raise SystemExit(
            f"{given.gather}: expected {model.decoder.acquisition.gather_shape}, got {gather.shape}"
        )
    figures, maps, gathers = benchmark(gather, model, given.iterations)
    if given.picture:
        draw(gather, maps, gathers, model.decoder.acquisition, given.picture)
    if given.json:
        print(json.dumps(figures))
        return
    print(
        f"score {figures['score']:.2f} (limit {figures['limit']:.2f}), "
        f"uncertainty {figures['uncertainty_mps']:.0f} m/s; "
        f"misfit of the modelled gather {figures['misfit']:.1%}, after the direct wave {figures['misfit_below']:.1%}; "
        f"its latents {figures['latent_rms_steps']:.1f} steps off"
    )
    if after := figures.get("refined"):
        print(
            f"refined in {after['iterations']} iterations, {after['seconds']:.0f} s: misfit {after['misfit']:.1%}, "
            f"after the direct wave {after['misfit_below']:.1%}; its latents {after['latent_rms_steps']:.1f} steps off"
        )


if __name__ == "__main__":
    main()
