"""FlatVel: flat layers of nearly equal thickness."""

from __future__ import annotations

import numpy as np

from physics.families.family import Frame
from physics.families.layers import fill, increasing_velocities, regular_tops, shuffled_velocities


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatVel-A: velocities increase with depth."""
    tops = regular_tops(rng)
    velocities = increasing_velocities(rng, len(tops) + 1)
    return fill(frame.z + 0 * frame.x, tops, velocities)


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw FlatVel-B: velocities in any order."""
    tops = regular_tops(rng)
    velocities = shuffled_velocities(rng, len(tops) + 1)
    return fill(frame.z + 0 * frame.x, tops, velocities)
