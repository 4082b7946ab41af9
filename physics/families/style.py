"""Style: scenes of objects on a gradient with depth, blurred (A) or sharp, hollow and hatched (B).

The benchmark made these from photographs. Here a scene is a union of bars and discs, bent by a random field.
"""

from __future__ import annotations

import numpy as np

from physics.families.family import FRAME_CELLS, STEPS, Frame
from physics.families.shapes import bar_distances, blur, random_waves

_MPS = 1.0 / STEPS  # of the benchmark's range
_LEAST_MPS = 1500.0

_Range = tuple[float, float]


def _background(
    rng: np.random.Generator, z: np.ndarray, top: _Range, bottom: _Range, power: _Range
) -> np.ndarray:
    """Draw a smooth increase with depth from ``top`` to ``bottom`` (mean, spread, m/s): ``(nz, 1)`` m/s."""
    share = z / (FRAME_CELLS - 1)
    first, last = rng.normal(*top), rng.normal(*bottom)
    return first + (last - first) * share ** rng.uniform(*power)


def _objects(
    rng: np.random.Generator, frame: Frame, n: int, radius: _Range, length: _Range, bend: float
) -> np.ndarray:
    """Draw ``n`` bars and discs: signed distances ``(n, nz, nx)`` cells."""
    z = frame.z + bend * random_waves(rng, frame.z, frame.x, 10, (0.12, 0.12))
    x = frame.x + bend * random_waves(rng, frame.z, frame.x, 10, (0.12, 0.12))
    places = rng.uniform(0.0, FRAME_CELLS, (n, 2))
    angles = rng.normal(0.0, 0.35, n) + np.where(rng.random(n) < 0.3, np.pi / 2, 0.0)
    lengths = np.where(rng.random(n) < 0.4, 0.0, rng.uniform(*length, n))
    return bar_distances(z, x, places, angles, lengths, rng.uniform(*radius, n))


def _sharpness(distance: np.ndarray, width: float) -> np.ndarray:
    """Turn a signed distance into a share of the inside, 0 to 1, over about ``width`` cells on each side."""
    return 0.5 - 0.5 * np.tanh(distance / width)


def draw_a(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw Style-A: blurred blobs and bars, mostly faster than what is around them."""
    n = int(rng.integers(9, 20))
    distance = _objects(rng, frame, n, (3.5, 7.5), (4.0, 15.0), 1.6).min(axis=0)
    inside = blur(_sharpness(distance, 1.0), frame.z, frame.x, rng.uniform(2.2, 3.2))
    contrast = rng.uniform(750.0, 1150.0) * (1 + 0.15 * random_waves(rng, frame.z, frame.x, 8, (0.1, 0.1)))
    field = _background(rng, frame.z, (1480.0, 60.0), (3150.0, 250.0), (0.7, 1.0)) + contrast * inside
    return (field - _LEAST_MPS) * _MPS


def draw_b(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Draw Style-B: sharp objects, some hollow, some hatched."""
    n = int(rng.integers(30, 46))
    solid = _objects(rng, frame, n, (3.0, 6.5), (1.0, 8.0), 1.2)
    hollow, hatched = slice(0, int(0.25 * n)), slice(int(0.25 * n), int(0.35 * n))
    walls = rng.uniform(1.4, 3.0, n)[hollow, None, None]
    holes = (solid[hollow] + 2 * walls).min(axis=0)
    lines = 1.2 * np.sin(frame.z * rng.uniform(0.6, 1.4) + frame.x * rng.uniform(-1.8, 1.8))
    gaps = np.maximum(solid[hatched].min(axis=0) + 1.0, lines)
    distance = np.maximum(solid.min(axis=0), -np.minimum(holes, gaps))
    inside = _sharpness(distance, rng.uniform(0.45, 0.8))
    contrast = rng.uniform(440.0, 530.0) * (1 + 0.2 * random_waves(rng, frame.z, frame.x, 8, (0.1, 0.1)))
    field = _background(rng, frame.z, (1570.0, 50.0), (3600.0, 150.0), (0.85, 1.05)) + contrast * inside
    return (field - _LEAST_MPS) * _MPS
