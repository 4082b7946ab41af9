"""CurveFault: folded layers cut by faults."""

from __future__ import annotations

import numpy as np

from physics.families.family import Frame
from physics.families.faults import break_lightly, break_twice, fine, smooth
from physics.families.folds import waves
from physics.families.layers import fill, filled_tops, halved_velocities, towards_neighbour

_LAYERS_A, _SHARES_A = (2, 3, 4), (0.6, 0.25, 0.15)
_LAYERS_B, _SHARES_B = (6, 7, 8), (0.6, 0.2, 0.2)


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw CurveFault-A: few layers under one strong fold, one fault of a small throw, smoothed lightly."""
    n_layers = int(rng.choice(_LAYERS_A, p=_SHARES_A))
    tops, velocities = filled_tops(rng, n_layers, 0.86), halved_velocities(rng, n_layers)
    broken = break_lightly(rng, fine(frame), rng.uniform(2.5, 7.5), tops[0])
    depth = broken.z - waves(rng, broken.x, rng.uniform(60.0, 85.0), rng.uniform(12.0, 22.0))
    trace = broken.trace * towards_neighbour(depth, tops, velocities)
    return smooth(fill(depth, tops, velocities) + trace)


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw CurveFault-B: many tightly folded layers in two blocks of their own velocities, cut by oblique faults."""
    n_layers = int(rng.choice(_LAYERS_B, p=_SHARES_B))
    z, x, block = break_twice(rng, frame)
    halves = []
    for _ in range(2):
        fold = waves(rng, x, rng.uniform(18.0, 30.0), rng.uniform(10.0, 36.0))
        tops = filled_tops(rng, n_layers, 0.6)
        halves.append(fill(z - fold, tops, halved_velocities(rng, n_layers)))
    return np.where(block, *halves)
