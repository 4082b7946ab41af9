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


def filled_tops(rng: np.random.Generator, n_layers: int, least_share: float) -> np.ndarray:
    """Draw the interfaces of a fault map, whose layers fill the frame.

    Every layer has the least thickness. As in the benchmark, the rest is dealt out to the layers in random order: each
    takes a uniformly distributed part of what is left, and the last one takes all of it.

    Args:
        rng: Random generator.
        n_layers: Layers in the stack.
        least_share: Least thickness of a layer as a share of an even one.

    Returns:
        ``n_layers - 1`` increasing depths in whole cells.
    """
    least = round(least_share * FRAME_CELLS / n_layers)
    rest = FRAME_CELLS - n_layers * least
    extra: list[int] = []
    for _ in range(n_layers - 1):
        extra.append(int(rng.integers(0, rest + 1)))
        rest -= extra[-1]
    return np.cumsum(least + rng.permutation([*extra, rest]))[:-1].astype(float)


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


def fill_between(depth: np.ndarray, tops: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Interpolate the velocity at ``depth`` linearly between half cells; arguments as for ``fill``."""
    below = depth - 0.25
    whole = np.floor(2 * below) / 2
    share = 2 * (below - whole)
    return (1 - share) * fill(whole + 0.25, tops, velocities) + share * fill(whole + 0.75, tops, velocities)


def towards_neighbour(depth: np.ndarray, tops: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the step from the velocity at ``depth`` to that of the layer above, or below the first layer."""
    layer = np.searchsorted(tops, depth, side="right")
    return velocities[np.where(layer > 0, layer - 1, 1)] - velocities[layer]
