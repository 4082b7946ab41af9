"""Faults: straight planes along which a block slides, and the light smoothing of the A families."""

from __future__ import annotations

import numpy as np

from physics.families.family import Frame

# The benchmark's anti-aliasing kernel of a step along each axis.
_KERNEL = (0.0535, 0.893, 0.0535)
# Share of the A maps whose fault crosses the whole map.
_NORMAL_SHARE = 0.65


def slide(
    z: np.ndarray, x: np.ndarray, place: float, dip_deg: float, throw: float, pivot: float = 35.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slide everything right of a fault along it.

    Args:
        z: Depth at which each point's material comes from, ``(nz, nx)`` cells.
        x: Position at which each point's material comes from, ``(nz, nx)`` cells.
        place: Position of the fault at depth ``pivot``, cells.
        dip_deg: Dip from the horizontal; below 90 the fault leans to the right with depth.
        throw: Vertical displacement of the block in cells, positive downwards.
        pivot: Depth at which ``place`` holds, cells.

    Returns:
        The new ``z`` and ``x``, and a mask of the block right of the fault.
    """
    run = 1 / np.tan(np.deg2rad(dip_deg))
    right = x - place > (z - pivot) * run
    return np.where(right, z - throw, z), np.where(right, x - throw * run, x), right


def smooth(field: np.ndarray) -> np.ndarray:
    """Blur lightly along both axes, so that a step reads 0, .0535, .9465, 1; edges are repeated."""
    side, centre, _ = _KERNEL
    for axis in (0, 1):
        padded = np.pad(field, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        before = np.take(padded, range(field.shape[axis]), axis)
        after = np.take(padded, range(2, field.shape[axis] + 2), axis)
        field = centre * field + side * (before + after)
    return field


def break_lightly(
    rng: np.random.Generator, frame: Frame, throw: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw the fault of an A map.

    Two thirds are normal faults across the whole map. The others are reversed: a block between the fault and
    steep edges inside the map slides down. Near the fault's upper end, old and new material are mixed, and
    the fault itself is a faint trace of what lies below.

    Args:
        rng: Random generator.
        frame: Points of the map.
        throw: Vertical displacement, cells.

    Returns:
        Depth and position at which each cell's material comes from; the share of other material mixed in, and
        the depth at which that comes from; ``(nz, nx)`` each.
    """
    z, x = np.broadcast_arrays(frame.z, frame.x)
    side = rng.choice([-1.0, 1.0])
    place = rng.uniform(5.0, 65.0)
    # Distance to the right of the fault, or to the left of its mirror image.
    run = 1 / np.tan(np.deg2rad(rng.uniform(42.0, 88.0)))
    across = side * (x - place) - (z - 35.0) * run
    if rng.random() < _NORMAL_SHARE:
        block = across > 0
        stale, below = np.zeros(z.shape), z
    else:
        tilted = side * (x - 34.5) + 0.09 * (z - 35.0)
        block = (across < 0) & (tilted > rng.uniform(-45.0, -20.0)) & (tilted < rng.uniform(24.0, 42.0))
        near_tip = z < rng.uniform(18.0, 34.0)
        stale = 0.5 * (block & near_tip & (across > -rng.uniform(9.0, 15.0)))
        trace = (np.abs(across) < 0.6) & (z > 8)
        stale, below = np.where(trace, 0.05, stale), np.where(trace, z + 10.0, z)
        run = -run
    return np.where(block, z - throw, z), np.where(block, x - side * throw * run, x), stale, below


def break_twice(rng: np.random.Generator, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the faults of a B map: two to four long oblique ones; the last parts the blocks.

    Returns:
        Depth and position at which each cell's material comes from, and a mask of the right block, ``(nz, nx)`` each.
    """
    z, x = np.broadcast_arrays(frame.z, frame.x)
    for _ in range(int(rng.integers(1, 4))):
        dip = rng.choice([-1.0, 1.0]) * rng.uniform(40.0, 70.0)
        z, x, _ = slide(z, x, rng.uniform(8.0, 62.0), dip, rng.uniform(8.0, 20.0) * rng.choice([-1.0, 1.0]))
    return slide(z, x, rng.uniform(15.0, 55.0), rng.uniform(55.0, 125.0), 0.0)
