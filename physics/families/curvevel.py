"""CurveVel: nearly parallel folded layers."""

from __future__ import annotations

import numpy as np

from physics.families.family import FRAME_CELLS, Frame
from physics.families.folds import growing_fold
from physics.families.layers import increasing_velocities, regular_tops, shuffled_velocities

# Size of a fold as a share of the layers' thickness; the middle half of the benchmark's.
_FOLD_SHARE = (0.17, 0.75)
# Size of the difference between one interface's fold and the next one's, cells.
_DIFFERENCE_CELLS = 0.9


def _draw(rng: np.random.Generator, frame: Frame, increasing: bool) -> np.ndarray:
    tops = regular_tops(rng)
    pitch = FRAME_CELLS / len(tops)
    fold = growing_fold(rng, frame.x)
    fold = fold * (pitch * rng.uniform(*_FOLD_SHARE) / fold.std())
    velocities = (increasing_velocities if increasing else shuffled_velocities)(rng, len(tops) + 1)
    field = np.full(np.broadcast_shapes(frame.z.shape, frame.x.shape), velocities[0])
    for top, velocity in zip(tops, velocities[1:], strict=True):
        field = np.where(frame.z >= top + fold, velocity, field)
        fold = fold + _DIFFERENCE_CELLS * growing_fold(rng, frame.x)
    return field


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw CurveVel-A: velocities increase with depth."""
    return _draw(rng, frame, increasing=True)


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw CurveVel-B: velocities in any order."""
    return _draw(rng, frame, increasing=False)
