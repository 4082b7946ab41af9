"""Draw variants of a survey's maps: sharper, mirrored, with other velocities and displaced edges.

A predicted map is smooth and too even where the decoder is unsure, and a survey has few events. A decoder that learns
variants sees more ground of the survey's kind. Their gathers are modelled, so each is an exact pair.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from models.inversion.regions import split
from physics.acquisition import Acquisition

# Largest loss of a merger of regions, in (m/s)^2 cells, drawn between these on a logarithmic scale.
LOSS = (3_000.0, 100_000.0)
# Standard deviation of a displacement along z and x, and the distance over which it changes, in cells.
DISPLACED_CELLS, OVER_CELLS = (1.5, 3.0), 12.0


def draw_variant(
    velocity_mps: np.ndarray, uncertainty_mps: np.ndarray, rng: np.random.Generator, acquisition: Acquisition
) -> np.ndarray:
    """Return a variant ``(nz, nx)`` of a map, in m/s.

    Args:
        velocity_mps: The map, ``(nz, nx)``.
        uncertainty_mps: Its expected absolute error, ``(nz, nx)``. Each region's velocity changes by a normal number
            of this standard deviation.
        rng: Source of all chance.
        acquisition: The survey, for the bounds of velocity.
    """
    regions, means = split(velocity_mps, float(np.exp(rng.uniform(*np.log(LOSS)))))
    sharp = rng.uniform()
    varied = sharp * means[regions] + (1.0 - sharp) * velocity_mps
    spread = np.bincount(regions.ravel(), uncertainty_mps.ravel()) / np.bincount(regions.ravel())
    varied = varied + (spread * rng.normal(size=len(means)))[regions]
    cells = np.array(np.mgrid[: varied.shape[0], : varied.shape[1]], np.float64)
    moved = [
        axis + cells_off * _waves(varied.shape, rng)
        for axis, cells_off in zip(cells, DISPLACED_CELLS, strict=True)
    ]
    varied = map_coordinates(varied, moved, order=1, mode="nearest")
    if rng.uniform() < 0.5:
        varied = varied[:, ::-1]
    return np.clip(varied, acquisition.velocity_min_mps, acquisition.velocity_max_mps).astype(np.float32)


def _waves(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field of unit standard deviation."""
    field = gaussian_filter(rng.normal(size=shape), OVER_CELLS, mode="wrap")
    return field / field.std()
