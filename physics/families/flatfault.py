"""FlatFault: flat layers cut by faults."""

from __future__ import annotations

import numpy as np

from physics.families.family import Frame
from physics.families.faults import break_lightly, break_twice, fine, smooth
from physics.families.layers import fill, fill_between, filled_tops, halved_velocities, towards_neighbour

# Layers of the stack and their shares. The benchmark names its files by the number (2 to 4, 6 to 8).
_LAYERS_A, _SHARES_A = (2, 3, 4), (0.04, 0.05, 0.91)
_LAYERS_B, _SHARES_B = (6, 7, 8), (0.6, 0.2, 0.2)


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatFault-A: few layers, one fault of a small throw, smoothed lightly."""
    n_layers = int(rng.choice(_LAYERS_A, p=_SHARES_A))
    # Interfaces lie between cells.
    tops = filled_tops(rng, n_layers, 0.86) - 0.5
    velocities = halved_velocities(rng, n_layers)
    half_cells = fine(frame)
    broken = break_lightly(rng, half_cells, np.clip(rng.normal(7.6, 1.4), 4.0, 10.4), tops[0])
    field = fill_between(broken.z, tops, velocities)
    field += broken.mixed * (fill_between(half_cells.z, tops, velocities) - field)
    return smooth(field + broken.trace * towards_neighbour(broken.z, tops, velocities))


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatFault-B: many layers in two blocks of their own velocities, cut by long oblique faults."""
    n_layers = int(rng.choice(_LAYERS_B, p=_SHARES_B))
    z, _, block = break_twice(rng, frame)
    halves = [
        fill(
            z,
            filled_tops(rng, n_layers, 0.6),
            halved_velocities(rng, n_layers),
        )
        for _ in range(2)
    ]
    return np.where(block, *halves)
