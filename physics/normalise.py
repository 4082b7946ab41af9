"""Scale maps and gathers as the OpenFWI benchmark does (Deng et al. 2022, its configuration files)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from physics.acquisition import Acquisition


def normalise_velocity(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Scale m/s to [-1, 1] over the survey's velocity bounds; any shape. An MAE of 1 is half the range."""
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    return 2.0 * ((velocity_mps - low) / (high - low) - 0.5)


def denormalise_velocity(normalised: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Scale [-1, 1] to m/s; the inverse of ``normalise_velocity``."""
    low, high = acquisition.velocity_min_mps, acquisition.velocity_max_mps
    return (normalised / 2.0 + 0.5) * (high - low) + low


def log_transform(gather: np.ndarray) -> np.ndarray:
    """Return sign(x) ln(1 + |x|), element by element; any shape."""
    return np.sign(gather) * np.log1p(np.abs(gather))


def scale_gather(gather: np.ndarray, log_range: Sequence[float]) -> np.ndarray:
    """Scale a log-transformed gather so that ``log_range`` (of the transformed data set) becomes [-1, 1]."""
    low, high = log_range
    return 2.0 * (log_transform(gather) - low) / (high - low) - 1.0
