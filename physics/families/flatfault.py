"""FlatFault: flat layers cut by faults."""

from __future__ import annotations

import numpy as np

from physics.families.family import Frame
from physics.families.faults import break_lightly, break_twice, smooth
from physics.families.layers import fill, halved_velocities, spaced_tops

# Layers of the stack and their shares. The benchmark names its files by the number (2 to 4, 6 to 8).
_LAYERS_A, _SHARES_A = (2, 3, 4), (0.06, 0.06, 0.88)
_LAYERS_B, _SHARES_B = (6, 7, 8), (0.6, 0.2, 0.2)


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatFault-A: few layers, one fault of a small throw, smoothed lightly."""
    n_layers = int(rng.choice(_LAYERS_A, p=_SHARES_A))
    tops = spaced_tops(rng, n_layers, rng.uniform(10.0, 26.0) * (4 / n_layers), 15.0, 2.9)
    velocities = halved_velocities(rng, n_layers)
    z, _, stale, below = break_lightly(rng, frame, rng.uniform(4.6, 10.4))
    field = (1 - stale) * fill(z, tops, velocities) + stale * fill(below, tops, velocities)
    return smooth(field)


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatFault-B: many layers in two blocks of their own velocities, cut by long oblique faults."""
    n_layers = int(rng.choice(_LAYERS_B, p=_SHARES_B))
    z, _, block = break_twice(rng, frame)
    halves = [
        fill(
            z,
            spaced_tops(rng, n_layers, rng.uniform(8.0, 28.0), 7.0, 2.5),
            halved_velocities(rng, n_layers),
        )
        for _ in range(2)
    ]
    return np.where(block, *halves)
