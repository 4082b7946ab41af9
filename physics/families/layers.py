"""Layer stacks: thicknesses, velocities, and the velocity at a depth.

Velocities are whole levels of ``STEPS``, so two layers may get the same one and merge, as in the benchmark.
"""

from __future__ import annotations

import numpy as np

from physics.families.family import FRAME_CELLS, STEPS


def regular_tops(rng: np.random.Generator) -> np.ndarray:
    """Draw the interfaces of a Vel map: nearly equal layers, the first of another thickness.

    Returns:
        Depths of 3 to 7 interfaces in cells, increasing; the last may lie below the frame.
    """
    n = int(rng.integers(3, 8))
    pitch = FRAME_CELLS / n
    first = pitch * rng.uniform(0.5, 1.5)
    return first + pitch * np.arange(n) + rng.uniform(-0.6, 0.6, n)


def increasing_velocities(rng: np.random.Generator, n_layers: int) -> np.ndarray:
    """Draw ``n_layers`` increasing velocities over the whole range, 0 to 1."""
    return np.sort(shuffled_velocities(rng, n_layers))


def shuffled_velocities(rng: np.random.Generator, n_layers: int) -> np.ndarray:
    """Draw ``n_layers`` velocities in any order over the whole range, 0 to 1."""
    return rng.integers(0, STEPS + 1, n_layers) / STEPS


def halved_velocities(rng: np.random.Generator, n_layers: int) -> np.ndarray:
    """Draw increasing velocities of a fault map: the upper layers in the slow half of the range, the lower in the fast.

    Returns:
        ``n_layers`` velocities, 0 to 1.
    """
    slow = n_layers // 2
    half = STEPS // 2
    upper = np.sort(rng.integers(0, half, slow))
    lower = np.sort(rng.integers(half, STEPS + 1, n_layers - slow))
    return np.concatenate([upper, lower]) / STEPS


def spaced_tops(
    rng: np.random.Generator, n_layers: int, first: float, least: float, mean_extra: float
) -> np.ndarray:
    """Draw interfaces at least ``least`` cells apart, with exponential extra thickness.

    Args:
        rng: Random generator.
        n_layers: Layers in the stack.
        first: Depth of the first interface, cells.
        least: Least thickness of a layer, cells.
        mean_extra: Mean of the extra thickness, cells.

    Returns:
        ``n_layers - 1`` increasing depths in cells.
    """
    thickness = least + np.minimum(rng.exponential(mean_extra, n_layers - 2), 3 * mean_extra)
    return first + np.concatenate([[0.0], np.cumsum(thickness)])


def fill(depth: np.ndarray, tops: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Look the velocity up at ``depth``.

    Args:
        depth: Depths in cells, any shape.
        tops: Increasing depths of the ``n - 1`` interfaces.
        velocities: Velocities of the ``n`` layers from the top.

    Returns:
        Velocities, shaped as ``depth``.
    """
    return velocities[np.searchsorted(tops, depth, side="right")]
