"""Gradient of a misfit through the benchmark's scheme, by its exact discrete adjoint, one source at a time.

The adjoint-state method (Plessix 2006, Geophysical Journal International 167) for the recursion of
``physics/engines/openfwi.py``:

    u[j] = u[j-1] + k (u[j-1] - u[j-2]) + alpha L u[j-1] + source,        alpha = (v dt / dx)^2, k = 1 - d dt

The Laplacian ``L`` of a periodic grid is its own adjoint. Multiplied by ``alpha``, the adjoint field obeys the same
recursion, backwards in time with ``alpha`` times the residual as its source: one step serves both directions. The
wave field of one source is kept every few steps, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np

from physics.acquisition import Acquisition
from physics.engines.openfwi import (
    HALO,
    REST,
    bend,
    bound_mps,
    compile_loops,
    emission,
    medium_of,
    padded_damping,
    record_shot,
    shots,
    step,
)
from physics.engines.scheme import PAD_CELLS, sponge_per_mps
from physics.wavelet import ricker

# Correlated fields in a period of the wavelet. A band-limited product is summed without error at any rate above its
# bandwidth: every 8 ms gives the gradient of a 15 Hz wavelet to 2e-5.
_SAMPLES_A_PERIOD = 8

# Value and derivative (T, R) of the part of a misfit that depends on the record (T, R) of a source.
SourceMisfit = Callable[[int, np.ndarray], tuple[float, np.ndarray]]


def misfit_and_gradient(
    velocity_mps: np.ndarray, acquisition: Acquisition, misfit: SourceMisfit
) -> tuple[float, np.ndarray]:
    """Sum a misfit over the sources; return it and its derivative with respect to the map, per m/s ``(nz, nx)``.

    See ``split_gradient``. The slowest cell of the map also sets the strength of the sponge, as in the benchmark.
    """
    value, gradient, by_slowest = split_gradient(velocity_mps, float(velocity_mps.min()), acquisition, misfit)
    gradient[np.unravel_index(velocity_mps.argmin(), velocity_mps.shape)] += by_slowest
    return value, gradient


def split_gradient(
    velocity_mps: np.ndarray, slowest_mps: float, acquisition: Acquisition, misfit: SourceMisfit
) -> tuple[float, np.ndarray, float]:
    """Sum a misfit over the sources and differentiate it, by the map and by the sponge.

    Args:
        velocity_mps: Map ``(nz, nx)`` in m/s.
        slowest_mps: Velocity that sets the strength of the sponge: the map's minimum in the benchmark.
        acquisition: The survey.
        misfit: Called for each source with its record ``(T, R)``.

    Returns:
        The value, its derivative with respect to the map ``(nz, nx)`` at constant sponge, and that with respect to
        ``slowest_mps``; both per m/s.
    """
    a = acquisition
    stride = max(2, int(1.0 / (a.peak_frequency_hz * a.dt_s * _SAMPLES_A_PERIOD)))
    n_turns = ceil(a.n_time / stride)
    medium = medium_of(velocity_mps, slowest_mps, a)
    v = np.pad(np.asarray(velocity_mps, np.float64), PAD_CELLS, mode="edge")
    history = np.empty((n_turns, v.shape[0] + 2 * HALO, v.shape[1] + 2 * HALO), np.float32)
    bends, turns = np.zeros((2, *v.shape), np.float32)
    value, by_slowest, by_v = 0.0, 0.0, np.zeros_like(v)
    damping_per_mps = a.dt_s * sponge_per_mps(a.dx_m) * padded_damping(a.n_depth, a.n_width)
    by_turns = damping_per_mps / np.square(v * (a.dt_s / a.dx_m))
    for s, shot in enumerate(shots(a, bound_mps(velocity_mps), n_turns * stride)):
        recorded = np.zeros((a.n_time, a.n_receivers), np.float32)
        emitted = emission(velocity_mps, shot, a, n_turns * stride)
        record_shot(medium, shot, emitted, recorded, history, stride)
        part, derivative = misfit(s, recorded)
        value += part
        size = float(np.abs(derivative).max())
        if size == 0.0:
            continue
        # The adjoint field is computed with a largest source of 1, far above the field at rest.
        residual = np.zeros((n_turns * stride, a.n_receivers), np.float32)
        alpha = medium.alpha[shot.receiver_row - PAD_CELLS, shot.receivers]
        residual[: a.n_time] = derivative / size * alpha
        bends[:], turns[:] = 0.0, 0.0
        at_source = _pull_back(medium, shot, residual, history, stride, bends, turns)
        by_v += (2.0 * stride * size) * bends / v
        by_slowest -= stride * size * float(np.sum(by_turns * turns))
        driven = np.dot(at_source[: a.n_time].astype(np.float64), ricker(a))
        by_v[shot.source] += 2.0 * a.dx_m**2 / v[shot.source] * driven * size
    return value, _fold(by_v), by_slowest


@compile_loops
def _pull_back(medium, shot, residual, history, stride, bends, turns):
    """Propagate the adjoint field from the last step to the first; return it at the source, ``(n_steps,)``.

    Adds, over the times of ``history``, (adjoint field) L u to ``bends (nz, nx)`` and (adjoint field's change) u to
    ``turns``.
    """
    deep, wide = len(medium.alpha) + 2 * PAD_CELLS, medium.alpha.shape[1]
    fields = np.full((2, deep + 2 * HALO, wide + 2 * HALO), REST, np.float32)
    at_source = np.zeros(len(shot.rows), np.float32)
    for n in range(len(shot.rows) - 1, -1, -1):
        # The step writes over the oldest field, which is then the latest.
        now, latest = fields[n & 1], fields[1 - (n & 1)]
        step(now, latest, medium, shot.rows[n], shot.columns[n])
        for r in range(len(shot.receivers)):
            latest[shot.receiver_row + HALO, shot.receivers[r] + HALO] += residual[n, r]
        at_source[n] = latest[shot.source[0] + HALO, shot.source[1] + HALO]
        if n % stride == 0:
            _correlate(latest, now, history[n // stride], (shot.rows[n], shot.columns[n]), bends, turns)
    return at_source


@compile_loops
def _correlate(latest, before, field, ranges, bends, turns):
    rows, columns = ranges
    for r in range(len(rows)):
        for z in range(rows[r, 0], rows[r, 1]):
            for c in range(len(columns)):
                first, end = columns[c, 0], columns[c, 1]
                above2, above = field[z, first + 2 : end + 2], field[z + 1, first + 2 : end + 2]
                here = field[z + 2, first : end + 4]
                below, below2 = field[z + 3, first + 2 : end + 2], field[z + 4, first + 2 : end + 2]
                q, q_before = latest[z + 2, first + 2 : end + 2], before[z + 2, first + 2 : end + 2]
                to_bends, to_turns = bends[z, first:end], turns[z, first:end]
                for i in range(end - first):
                    to_bends[i] += q[i] * bend(above2, above, here, below, below2, i)
                    to_turns[i] += (q[i] - q_before[i]) * here[i + 2]


def _fold(padded: np.ndarray) -> np.ndarray:
    """Adjoint of the edge replication by ``PAD_CELLS``: the padding's derivative goes to the border cells."""
    p = PAD_CELLS
    for _ in range(2):
        inner = padded[p:-p].copy()
        inner[0] += padded[:p].sum(axis=0)
        inner[-1] += padded[-p:].sum(axis=0)
        padded = inner.T
    return padded
