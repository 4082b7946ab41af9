"""Faults: straight planes along which a block slides, and the light smoothing of the A families."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physics.families.family import FRAME_CELLS, Frame

# The benchmark's anti-aliasing kernel of a step along each axis.
_KERNEL = (0.0535, 0.893, 0.0535)
# Share of the A maps whose fault crosses the whole map.
_CROSSING_SHARE = 0.72


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


@dataclass(frozen=True)
class Break:
    """Where the material of a broken map comes from; every array is ``(nz, nx)``.

    Attributes:
        z: Depth, cells.
        x: Position, cells.
        mixed: Share of other material mixed in, 0 to 1.
        mixed_z: Depth at which the mixed-in material comes from, cells.
    """

    z: np.ndarray
    x: np.ndarray
    mixed: np.ndarray
    mixed_z: np.ndarray


def break_lightly(rng: np.random.Generator, frame: Frame, throw: float, first: float) -> Break:
    """Draw the fault of an A map.

    Most faults cross the whole map. Otherwise a block between the fault and steep edges inside the map slides down,
    reversed. Many faults end below the first interface. Where one does not, old and new material are often mixed
    beside it at the first interface. The fault itself is a faint, broken line.

    Args:
        rng: Random generator.
        frame: Points of the map.
        throw: Vertical displacement, cells.
        first: Depth of the first interface, cells.
    """
    z, x = np.broadcast_arrays(frame.z, frame.x)
    side = rng.choice([-1.0, 1.0])
    dip = rng.uniform(25.0, 45.0) if rng.random() < 0.15 else rng.uniform(50.0, 89.0)
    run = 1 / np.tan(np.deg2rad(dip))
    # Distance behind the fault, seen from the side to which it dips.
    across = side * (x - rng.uniform(5.0, 65.0)) - (z - 35.0) * run
    if rng.random() < _CROSSING_SHARE:
        block = across > 0
        throw = throw * rng.choice([-1.0, 1.0], p=[0.25, 0.75])
    else:
        tilted = side * (x - 34.5) + 0.09 * (z - 35.0)
        block = (across < 0) & (tilted > rng.uniform(-36.0, -24.0)) & (tilted < rng.uniform(27.0, 34.0))
        run = -run
    mixed, mixed_z = np.zeros(z.shape), z
    lowest = first + max(throw, 0.0) + 1.5
    if rng.random() < 0.45:
        block = block & (z > lowest + rng.uniform(0.0, 4.0))
    elif rng.random() < 0.6:
        mixed = 0.5 * (block & (z < lowest + 1.0) & (np.abs(across) < rng.uniform(7.0, 15.0)))
    dashes = rng.random(FRAME_CELLS) < 0.4
    trace = (np.abs(across) < 0.6) & (z > first - 8.0) & dashes[z.astype(int)]
    mixed = np.where(trace, rng.uniform(0.03, 0.25), mixed)
    mixed_z = np.where(trace, z + rng.choice([-10.0, 10.0], p=[0.4, 0.6]), mixed_z)
    return Break(np.where(block, z - throw, z), np.where(block, x - side * throw * run, x), mixed, mixed_z)


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
