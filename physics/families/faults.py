"""Faults: straight planes along which a block slides, and the light smoothing of the A families."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physics.families.family import FRAME_CELLS, Frame

# The benchmark draws its A maps in half cells. A cell is this weighted mean of the half cells at these offsets, so a
# step has the shares 0, .0535, .9465, 1.
_OFFSETS = np.array([-0.75, -0.25, 0.25, 0.75])
_KERNEL = np.array([0.0535, 0.4465, 0.4465, 0.0535])
# Share of the A maps whose block slides up.
_UP_SHARE = 0.76
# Rows over which the raise of the ground above the fault grows by one cell.
_RAISED_ROWS = 181.5


def fine(frame: Frame) -> Frame:
    """Return the half cells around each cell of a frame, for ``smooth``: four times as many rows and columns."""
    return Frame((frame.z + _OFFSETS[None, :]).reshape(-1, 1), (frame.x.T + _OFFSETS[None, :]).reshape(1, -1))


def smooth(field: np.ndarray) -> np.ndarray:
    """Average a map that was drawn on a ``fine`` frame, ``(4 nz, 4 nx)``, to ``(nz, nx)``."""
    rows = np.tensordot(field.reshape(-1, 4, field.shape[1]), _KERNEL, (1, 0))
    return np.tensordot(rows.reshape(len(rows), -1, 4), _KERNEL, (2, 0))


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


@dataclass(frozen=True)
class Break:
    """Where the material of a broken map comes from; every array has the shape of the map.

    Attributes:
        z: Depth, cells.
        x: Position, cells.
        mixed: Share of the unbroken map's material mixed in, 0 to 1.
        trace: Share of the neighbouring layer's velocity mixed in, 0 to 1.
    """

    z: np.ndarray
    x: np.ndarray
    mixed: np.ndarray
    trace: np.ndarray


def break_lightly(rng: np.random.Generator, frame: Frame, throw: float, first: float) -> Break:
    """Draw the fault of an A map.

    The block below the fault slides along it. Most blocks slide up and reach the side of the map. The others slide down
    between two steep edges inside the map, often with a mixture of old and new material at the first interface. The
    ground above the fault is raised slightly, up to a steep edge. A small share of the neighbouring layer is mixed in
    along the fault, and in dashes along that edge.

    Args:
        rng: Random generator.
        frame: Points of the map.
        throw: Vertical displacement, cells.
        first: Depth of the first interface, cells.
    """
    z, x = np.broadcast_arrays(frame.z, frame.x)
    # Blocks slide by whole half cells.
    throw = np.round(2 * throw) / 2
    side = rng.choice([-1.0, 1.0])
    dip = rng.uniform(25.0, 45.0) if rng.random() < 0.15 else rng.uniform(50.0, 89.0)
    run = 1 / np.tan(np.deg2rad(dip))
    # Distance behind the fault, seen from the side to which it dips; the block that slides is in front.
    across = side * (x - rng.uniform(5.0, 65.0)) - (z - 35.0) * run
    middle = side * (x - 34.5)
    edge = 31.0 - 0.104 * (z - 36.5)
    inside = middle < edge
    block = (across < 0) & inside
    mixed, upper_end = np.zeros(z.shape), 0.0
    if rng.random() < _UP_SHARE:
        throw = -throw
    else:
        inside &= middle + 0.09 * (z - 35.0) > rng.uniform(-36.0, -24.0)
        block &= inside
        upper_end = first - 10.0
        if rng.random() < 0.7:
            upper = z < first + throw + 1.0
            mixed = 0.5 * (block & upper & (np.abs(across) < rng.uniform(7.0, 15.0)))
    trace = _faint(rng, z, 0.01, 0.2, 0.85)
    trace = np.where((np.abs(across) < 0.25 + 0.25 * run) & (z >= upper_end) & (z < 67.0), trace, 0.0)
    dashes = (np.abs(middle - edge) < 0.25) & (z > first + 3.0) & (across > 2.0) & (z % 5.0 > 3.0)
    trace = np.where(dashes, _faint(rng, z, 0.008, 0.25, 0.5), trace)
    raised = np.where(inside, z + (z + 0.25) / _RAISED_ROWS, z)
    return Break(
        np.where(block, raised - throw, raised), np.where(block, x - side * throw * run, x), mixed, trace
    )


def _faint(rng: np.random.Generator, z: np.ndarray, least: float, most: float, present: float) -> np.ndarray:
    """Draw a share between ``least`` and ``most``, or zero, for each half row; neighbouring rows often share one."""
    rows = 2 * FRAME_CELLS
    share = np.exp(rng.uniform(np.log(least), np.log(most), rows)) * (rng.random(rows) < present)
    for row in range(1, rows):
        if rng.random() < 0.7:
            share[row] = share[row - 1]
    return share[np.clip((2 * z).astype(int), 0, rows - 1)]


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
