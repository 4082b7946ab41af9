"""Errors of predicted maps, family by family."""

from __future__ import annotations

import numpy as np

from models.data.gathers import DecimatedSet
from physics.metrics import mae, rmse, ssim


def score(predicted: np.ndarray, decimated: DecimatedSet, indices: np.ndarray) -> dict[str, dict[str, float]]:
    """Return ``mae``, ``rmse``, ``ssim`` (normalised), ``mae_mps`` and sample count, per family and over all.

    ``mean_map_mae`` is the error of predicting the mean of the family's true maps for every sample. It is the best
    score without any recording. Over all it is the mean over the samples, each with its own family's mean map, so that
    it lies between the families' values like ``mae``. The mean of all families' maps would be a worse guess.
    """
    truth, families = decimated.maps[indices], decimated.families[indices]
    a = decimated.acquisition
    half_range_mps = (a.velocity_max_mps - a.velocity_min_mps) / 2
    mean_map_errors = np.zeros(len(indices))
    for family in set(families):
        own = truth[families == family]
        mean_map_errors[families == family] = np.abs(own - own.mean(axis=0)).mean(axis=(1, 2))
    table = {}
    for family in [*sorted(set(families)), "all"]:
        chosen = np.ones(len(indices), bool) if family == "all" else families == family
        p, t = np.clip(predicted[chosen], -1.0, 1.0), truth[chosen]
        table[str(family)] = {
            "count": int(chosen.sum()),
            "mae": float(mae(p, t)),
            "mae_mps": float(mae(p, t)) * half_range_mps,
            "rmse": float(rmse(p, t)),
            "ssim": float(ssim(p, t)),
            "mean_map_mae": float(mean_map_errors[chosen].mean()),
        }
    return table
