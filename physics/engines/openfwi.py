"""OpenFWI's forward model, reproduced cell by cell: constant-density acoustic, no free surface.

The scheme is second order in time and fourth in space. The map is edge-replicated by 120 damped cells on every side.
The padded grid is periodic, as in the benchmark's program: waves that leave at the top re-enter at the bottom
(docs/decisions/0018).

The loops are compiled by Numba, one shot at a time, so that its two wave fields stay in a core's cache. Cells that no
wave can have reached, or from which none comes back within the record, are skipped
(docs/decisions/0022).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import inf
from typing import NamedTuple

import numba
import numpy as np
from numba.core.caching import FunctionCache

from physics.acquisition import Acquisition
from physics.engines.scheme import MARGIN_CELLS, PAD_CELLS, sponge_per_mps
from physics.wavelet import ricker

# Fourth-order second derivative: centre (of both directions), first and second neighbours.
_CENTRE, _FIRST, _SECOND = np.float32(-5.0), np.float32(4.0 / 3.0), np.float32(-1.0 / 12.0)
# Border of a field that repeats the cells of the opposite side: the reach of the Laplacian.
HALO = 2
# Pressure of the field at rest. A constant field stays constant, and this one keeps wave fronts out of the subnormal
# numbers, with which processors are ten times slower. Waves have amplitudes of about 1.
REST = np.float32(1e-20)


class LoopCache(FunctionCache):
    """Numba's cache on disk, of which no fault ends a computation: a file that a power cut emptied, a full disk."""

    def load_overload(self, sig, target_context):
        """Return the compiled function, or None where it has to be compiled again."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever unpickling damaged bytes raises
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig, data):
        """Keep the compiled function if the disk takes it."""
        with suppress(OSError):
            super().save_overload(sig, data)


def compile_loops(function: Callable) -> Callable:
    """Compile ``function`` with Numba; keep the result on disk.

    The folder is ``NUMBA_CACHE_DIR``, else ``__pycache__`` beside the module, else the user's cache. Without a folder
    that can be written, every process compiles its own.
    """
    # Without reassociation, so that code read from disk rounds as code just compiled.
    compiled = numba.njit(fastmath={"contract", "nnan", "ninf", "nsz", "arcp"}, nogil=True)(function)
    # Numba raises RuntimeError where it finds no folder. ``njit(cache=True)`` sets the same attribute.
    with suppress(RuntimeError):
        compiled._cache = LoopCache(function)
    return compiled


class Shot(NamedTuple):
    """Where one shot's waves enter, are recorded and must be computed, on the padded grid.

    Attributes:
        source: Row and column.
        receiver_row: Row of all receivers.
        receivers: Their columns, ``(R,)``.
        rows: Up to three ranges [first, end) of rows that matter at each step, ``(n_steps, 3, 2)``.
        columns: The same along x.
    """

    source: tuple[int, int]
    receiver_row: int
    receivers: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


class Medium(NamedTuple):
    """A map on the padded grid, without what repeats: see ``step``.

    Attributes:
        alpha: ``(v dt / dx)^2`` of the map's rows, ``(n_depth, n_width + 240)`` float32.
        kept: ``1 - damping * dt`` by rows into the sponge, ``(120, n_width + 240)`` float32. Row 0 is the map's.
    """

    alpha: np.ndarray
    kept: np.ndarray


def medium_of(velocity_mps: np.ndarray, slowest_mps: float, a: Acquisition) -> Medium:
    """Return the medium of a map ``(nz, nx)``; ``slowest_mps`` sets the sponge: the map's minimum in the benchmark."""
    rows = np.pad(velocity_mps.astype(np.float64), ((0, 0), (PAD_CELLS, PAD_CELLS)), mode="edge")
    alpha = np.square(rows * (a.dt_s / a.dx_m)).astype(np.float32)
    damping = padded_damping(a.n_depth, a.n_width)[PAD_CELLS - 1 :: -1]
    kept = 1.0 - damping * (slowest_mps * sponge_per_mps(a.dx_m) * a.dt_s)
    return Medium(alpha, kept.astype(np.float32))


def padded_damping(n_depth: int, n_width: int) -> np.ndarray:
    """Return the damping of every padded cell, 0 inside to 1 at the outer edge; corners take that of the sides."""
    ramp = (np.arange(PAD_CELLS) / (PAD_CELLS - 1)) ** 2
    along_z, along_x = (np.concatenate([ramp[::-1], np.zeros(n), ramp]) for n in (n_depth, n_width))
    damping = np.broadcast_to(along_x, (len(along_z), len(along_x))).copy()
    damping[:, PAD_CELLS : PAD_CELLS + n_width] = along_z[:, None]
    return damping


@lru_cache(maxsize=16)
def shots(a: Acquisition, fastest_mps: float, n_steps: int) -> tuple[Shot, ...]:
    """Return the survey's shots for maps up to ``fastest_mps``; ``inf`` computes every cell at every step."""
    step = np.arange(n_steps)
    if fastest_mps == inf:
        out = back = np.full(n_steps, inf)
    else:
        cells_a_step = fastest_mps * a.dt_s / a.dx_m
        out = np.ceil(cells_a_step * step) + MARGIN_CELLS
        back = np.ceil(cells_a_step * np.maximum(a.n_time - step, 0)) + MARGIN_CELLS
    deep, wide = a.n_depth + 2 * PAD_CELLS, a.n_width + 2 * PAD_CELLS
    receivers = np.array(a.receiver_cells) + PAD_CELLS
    row, receiver_row = a.source_row + PAD_CELLS, a.receiver_row + PAD_CELLS
    rows = _ranges(deep, (row, row), (receiver_row, receiver_row), out, back)
    ends = (int(receivers.min()), int(receivers.max()))
    return tuple(
        Shot((row, cell), receiver_row, receivers, rows, _ranges(wide, (cell, cell), ends, out, back))
        for cell in (cell + PAD_CELLS for cell in a.source_cells)
    )


def _ranges(
    ring: int, source: tuple[int, int], receivers: tuple[int, int], out: np.ndarray, back: np.ndarray
) -> np.ndarray:
    """Return the ranges of cells within ``out`` of the source and ``back`` of a receiver, on a ring of cells."""
    cells = np.arange(ring)

    def distance(ends: tuple[int, int]) -> np.ndarray:
        below, above = ends[0] - cells, cells - ends[1]
        beyond = np.maximum(np.maximum(below, above), 0)
        return np.minimum(beyond, np.minimum(np.abs(below + ring), np.abs(above + ring)))

    matters = (distance(source) <= out[:, None]) & (distance(receivers) <= back[:, None])
    edges = np.diff(np.pad(matters, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    ranges = np.zeros((len(out), 3, 2), np.int64)
    for n, (row, count) in enumerate(zip(edges, np.sum(edges > 0, axis=1), strict=True)):
        ranges[n, :count] = np.stack([np.flatnonzero(row > 0), np.flatnonzero(row < 0)], axis=1)
    return ranges


@compile_loops
def bend(above2, above, here, below, below2, i):
    """Fourth-order Laplacian, times the squared cell size, at ``here[i + 2]``; the other rows begin at that cell."""
    near = above[i] + below[i] + here[i + 1] + here[i + 3]
    far = above2[i] + below2[i] + here[i] + here[i + 4]
    return _FIRST * near + _SECOND * far + _CENTRE * here[i + 2]


@compile_loops
def step(now, past, medium, rows, columns):
    """Write the next field over ``past``: p+ = p + (1 - d dt) (p - p-) + alpha (Laplacian of p).

    Fields are ``(nz + 4, nx + 4)``. Rows above and below the map have its first and last row's ``alpha``; rows of the
    sponge take their row of ``kept`` from the map outwards.
    """
    alpha, kept = medium.alpha, medium.kept
    deep, wide, n_depth = now.shape[0] - 2 * HALO, now.shape[1] - 2 * HALO, len(alpha)
    for r in range(len(rows)):
        for z in range(rows[r, 0], rows[r, 1]):
            map_row = min(max(z - PAD_CELLS, 0), n_depth - 1)
            into_sponge = max(PAD_CELLS - 1 - z, z - PAD_CELLS - n_depth, 0)
            for c in range(len(columns)):
                first, end = columns[c, 0], columns[c, 1]
                above2, above = now[z, first + 2 : end + 2], now[z + 1, first + 2 : end + 2]
                here = now[z + 2, first : end + 4]
                below, below2 = now[z + 3, first + 2 : end + 2], now[z + 4, first + 2 : end + 2]
                after = past[z + 2, first + 2 : end + 2]
                a, k = alpha[map_row, first:end], kept[into_sponge, first:end]
                for i in range(end - first):
                    p = here[i + 2]
                    after[i] = p + k[i] * (p - after[i]) + a[i] * bend(above2, above, here, below, below2, i)
            row = past[z + 2]
            row[:HALO] = row[wide : wide + HALO]
            row[wide + HALO :] = row[HALO : 2 * HALO]
    past[:HALO] = past[deep : deep + HALO]
    past[deep + HALO :] = past[HALO : 2 * HALO]


@compile_loops
def _copy(field, kept_field, rows, columns):
    """Copy the ranges of cells and what the Laplacian reaches around them."""
    for r in range(len(rows)):
        for c in range(len(columns)):
            if rows[r, 1] > rows[r, 0] and columns[c, 1] > columns[c, 0]:
                z, x = slice(rows[r, 0], rows[r, 1] + 4), slice(columns[c, 0], columns[c, 1] + 4)
                kept_field[z, x] = field[z, x]


@compile_loops
def record_shot(medium, shot, emitted, recorded, history, stride):
    """Propagate one shot that emits ``emitted (n_steps,)``; fill ``recorded (T, R)``.

    ``history (n, nz + 4, nx + 4)`` gets the field before every ``stride``-th step, as far as it reaches.
    """
    deep, wide = len(medium.alpha) + 2 * PAD_CELLS, medium.alpha.shape[1]
    fields = np.full((2, deep + 2 * HALO, wide + 2 * HALO), REST, np.float32)
    for n in range(len(shot.rows)):
        now, past = fields[n & 1], fields[1 - (n & 1)]
        if n % stride == 0 and n // stride < len(history):
            _copy(now, history[n // stride], shot.rows[n], shot.columns[n])
        step(now, past, medium, shot.rows[n], shot.columns[n])
        past[shot.source[0] + HALO, shot.source[1] + HALO] += emitted[n]
        if n < len(recorded):
            for r in range(len(shot.receivers)):
                recorded[n, r] = past[shot.receiver_row + HALO, shot.receivers[r] + HALO]


def emission(velocity_mps: np.ndarray, shot: Shot, a: Acquisition, n_steps: int) -> np.ndarray:
    """Return what the shot adds to the field at its source in each step, ``(n_steps,)`` float32."""
    v = velocity_mps[shot.source[0] - PAD_CELLS, shot.source[1] - PAD_CELLS]
    emitted = np.zeros(n_steps, np.float32)
    emitted[: a.n_time] = ricker(a) * np.float32((v * a.dt_s) ** 2)
    return emitted


def bound_mps(velocity_mps: np.ndarray) -> float:
    """Return a bound of the velocities, rounded up so that similar maps share the ranges of ``shots``."""
    return float(np.ceil(velocity_mps.max() / 250.0) * 250.0)


def model(velocity_mps: np.ndarray, acquisition: Acquisition, fastest_mps: float | None = None) -> np.ndarray:
    """Model gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s.

    ``fastest_mps`` bounds the velocities; by default each map's own do.
    """
    a = acquisition
    gathers = np.zeros((len(velocity_mps), *a.gather_shape), np.float32)
    no_history = np.zeros((0, 0, 0), np.float32)
    for velocity, gather in zip(velocity_mps, gathers, strict=True):
        medium = medium_of(velocity, float(velocity.min()), a)
        for shot, recorded in zip(
            shots(a, fastest_mps or bound_mps(velocity), a.n_time), gather, strict=True
        ):
            emitted = emission(velocity, shot, a, a.n_time)
            record_shot(medium, shot, emitted, recorded, no_history, a.n_time)
    return gathers
