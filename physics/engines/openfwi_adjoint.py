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
from functools import lru_cache
from itertools import pairwise
from math import ceil

import numpy as np
from keras import ops

from physics.acquisition import Acquisition
from physics.engines.openfwi import (
    _CENTRE,
    _FIRST,
    _LEAST_PARTED_STEPS,
    _PART_ENDS,
    _SECOND,
    _padded_damping,
    _repeat,
    _Window,
    _window,
    compile_function,
)
from physics.engines.scheme import PAD_CELLS, sponge_per_mps
from physics.wavelet import ricker

# Correlated fields in a period of the wavelet. A band-limited product is summed without error at any rate above its
# bandwidth: every 4 ms gives the gradient of a 15 Hz wavelet to 1e-5.
_SAMPLES_A_PERIOD = 16
# Border of a stored field that holds the cells beyond its ends: the reach of the Laplacian.
_HALO = 2

# Value and derivative (T, R) of the part of a misfit that depends on the record (T, R) of a source.
SourceMisfit = Callable[[int, np.ndarray], tuple[float, np.ndarray]]


class Adjoint:
    """Compiled forward and adjoint recursions of one survey, for maps up to ``fastest_mps``."""

    def __init__(self, acquisition: Acquisition, fastest_mps: float) -> None:
        a = self.acquisition = acquisition
        self._stride = max(2, int(1.0 / (a.peak_frequency_hz * a.dt_s * _SAMPLES_A_PERIOD)))
        n_turns = ceil(a.n_time / self._stride)
        self._n_steps = n_turns * self._stride
        ends = _PART_ENDS if a.n_time >= _LEAST_PARTED_STEPS else (1.0,)
        edges = [0, *(round(end * n_turns) for end in ends)]
        self._parts = [
            (first, last, _window(first * self._stride, last * self._stride, a, fastest_mps))
            for first, last in pairwise(edges)
        ]
        self._signal = np.zeros(self._n_steps, np.float32)
        self._signal[: a.n_time] = ricker(a)
        self._damping = _padded_damping(a.n_depth, a.n_width).astype(np.float64)
        self._columns = np.array(a.receiver_cells) + PAD_CELLS
        self._forward = compile_function(self._trace_forward)
        self._adjoint = compile_function(self._trace_adjoint)

    def __call__(
        self, velocity_mps: np.ndarray, slowest_mps: float, misfit: SourceMisfit
    ) -> tuple[float, np.ndarray, float]:
        """Sum a misfit over the sources and differentiate it.

        Args:
            velocity_mps: Map ``(nz, nx)`` in m/s.
            slowest_mps: Velocity that sets the strength of the sponge: the map's minimum in the benchmark.
            misfit: Called for each source with its record ``(T, R)``.

        Returns:
            The value, its derivative with respect to the map ``(nz, nx)`` at constant sponge, and that with respect to
            ``slowest_mps``; both per m/s.
        """
        a = self.acquisition
        v = np.pad(np.asarray(velocity_mps, np.float64), PAD_CELLS, mode="edge")
        alpha = np.square(v * (a.dt_s / a.dx_m))
        damping_per_mps = a.dt_s * sponge_per_mps(a.dx_m) * self._damping
        earth = ((1.0 - slowest_mps * damping_per_mps).astype(np.float32), alpha.astype(np.float32))
        source_row, receiver_row = PAD_CELLS + a.source_row, PAD_CELLS + a.receiver_row
        value, by_slowest, by_v = 0.0, 0.0, np.zeros_like(v)
        for s, cell in enumerate(a.source_cells):
            at = PAD_CELLS + cell
            unit = np.zeros(v.shape[1], np.float32)
            unit[at] = 1.0
            recorded, history = self._forward(*earth, unit * np.float32((v[source_row, at] * a.dt_s) ** 2))
            part, derivative = misfit(s, np.asarray(recorded)[: a.n_time])
            value += part
            residual = np.zeros((self._n_steps, v.shape[1]))
            np.add.at(residual[: a.n_time].T, self._columns, np.asarray(derivative).T)
            residual *= alpha[receiver_row]
            bends, turns, at_source = self._adjoint(*earth, residual.astype(np.float32), unit, history)
            for (_, _, window), bend, turn in zip(reversed(self._parts), bends, turns, strict=True):
                cells = np.ix_(window.z.cells(), window.x.cells())
                by_v[cells] += (2.0 * self._stride) * np.asarray(bend, np.float64) / v[cells]
                by_slowest -= self._stride * float(
                    np.sum(damping_per_mps[cells] / alpha[cells] * np.asarray(turn, np.float64))
                )
            driven = np.dot(np.asarray(at_source, np.float64), self._signal[::-1])
            by_v[source_row, at] += 2.0 * a.dx_m**2 / v[source_row, at] * driven
        return value, _fold(by_v), by_slowest

    def _trace_forward(self, kept, alpha, source):
        """``source (NX,)`` times the wavelet goes into the row of the sources. Returns the record and the history."""
        signal = ops.convert_to_tensor(self._signal)
        now = past = last_window = None
        records, history = [], []
        for first, last, window in self._parts:
            now, past = (_enter(field, window, last_window) for field in (now, past))
            last_window = window
            step = _stepper(kept, alpha, window)
            row = PAD_CELLS - window.z.first
            line = ops.take(source, window.x.cells())
            columns = self._columns - window.x.first + _HALO

            def turn(
                i, now, past, recorded, fields, first=first, step=step, row=row, line=line, columns=columns
            ):
                fields = ops.slice_update(fields, (i, 0, 0), now[None])
                surfaces = []
                for j in range(self._stride):
                    n = (first + i) * self._stride + j
                    now, past = step(now, past, row + self.acquisition.source_row, signal[n] * line), now
                    surface = now[row + self.acquisition.receiver_row + _HALO]
                    surfaces.append(ops.take(surface, columns))
                recorded = ops.slice_update(recorded, (i * self._stride, 0), ops.stack(surfaces))
                return now, past, recorded, fields

            recorded = ops.zeros(((last - first) * self._stride, len(columns)))
            state = (now, past, recorded, ops.zeros((last - first, *now.shape)))
            now, past, recorded, fields = _repeat(last - first, turn, state)
            records.append(recorded)
            history.append(fields)
        return ops.concatenate(records), history

    def _trace_adjoint(self, kept, alpha, residual, source, history):
        """``residual (n_steps, NX)`` goes into the row of the receivers, last sample first.

        Returns, for each part from the last to the first, the sums over time of (adjoint field) L u and of (adjoint
        field's change) u, and the adjoint field where ``source`` is 1, from the last step to the first.
        """
        now = past = last_window = None
        bends, turns, at_source = [], [], []
        for (first, last, window), fields in zip(reversed(self._parts), reversed(history), strict=True):
            now, past = (_enter(field, window, last_window) for field in (now, past))
            last_window = window
            step = _stepper(kept, alpha, window)
            row = PAD_CELLS - window.z.first
            line = ops.take(source, window.x.cells())
            lines = ops.take(residual, window.x.cells(), axis=1)

            def turn(
                i,
                now,
                past,
                bend,
                change,
                driven,
                first=first,
                last=last,
                step=step,
                row=row,
                line=line,
                lines=lines,
                fields=fields,
            ):
                marks = []
                k = last - 1 - i
                for j in reversed(range(self._stride)):
                    values = lines[k * self._stride + j]
                    now, past = step(now, past, row + self.acquisition.receiver_row, values), now
                    marks.append(ops.sum(_inner(now)[row + self.acquisition.source_row] * line))
                field = ops.slice(fields, (k - first, 0, 0), (1, *now.shape))[0]
                bend = bend + _inner(now) * _bend(field)
                change = change + (_inner(now) - _inner(past)) * _inner(field)
                driven = ops.slice_update(driven, (i * self._stride,), ops.stack(marks))
                return now, past, bend, change, driven

            zero = ops.zeros((window.z.count, window.x.count))
            driven = ops.zeros(((last - first) * self._stride,))
            now, past, bend, change, driven = _repeat(last - first, turn, (now, past, zero, zero, driven))
            bends.append(bend)
            turns.append(change)
            at_source.append(driven)
        return bends, turns, ops.concatenate(at_source)


@lru_cache(maxsize=4)
def adjoint(acquisition: Acquisition, fastest_mps: float) -> Adjoint:
    """``Adjoint`` of one survey, compiled once."""
    return Adjoint(acquisition, fastest_mps)


def _stepper(kept, alpha, window: _Window) -> Callable:
    """The step in a window, ``(now, past, row, values) -> after``; ``values`` are added to a row.

    Fields carry a halo of ``_HALO`` cells, so that the Laplacian is made of slices and the new field is written over
    the oldest one.
    """
    kept, alpha = window.cut(kept), window.cut(alpha)

    def step(now, past, row, values):
        after = _inner(now) + kept * (_inner(now) - _inner(past)) + alpha * _bend(now)
        field = ops.slice_update(past, (_HALO, _HALO), after)
        line = field[row + _HALO : row + _HALO + 1, _HALO:-_HALO] + values[None]
        return _close(ops.slice_update(field, (row + _HALO, _HALO), line), window)

    return step


def _enter(field, window: _Window, last: _Window | None):
    """A field of window ``last``, with its halo, in ``window``; zeros without one."""
    if field is None or last is None:
        return ops.zeros((window.z.count + 2 * _HALO, window.x.count + 2 * _HALO))
    return _close(ops.pad(window.take_over(_inner(field)[None], last)[0], ((_HALO, _HALO),) * 2), window)


def _close(field, window: _Window):
    """Copy the ends of each closed axis into the halo beyond the other end."""
    h = _HALO
    if window.z.closed:
        field = ops.slice_update(field, (0, 0), field[-2 * h : -h])
        field = ops.slice_update(field, (window.z.count + h, 0), field[h : 2 * h])
    if window.x.closed:
        field = ops.slice_update(field, (0, 0), field[:, -2 * h : -h])
        field = ops.slice_update(field, (0, window.x.count + h), field[:, h : 2 * h])
    return field


def _inner(field):
    return field[_HALO:-_HALO, _HALO:-_HALO]


def _bend(q):
    """Fourth-order Laplacian, times the square of the cell, of a field with its halo; without it."""
    near = q[1:-3, 2:-2] + q[3:-1, 2:-2] + q[2:-2, 1:-3] + q[2:-2, 3:-1]
    far = q[:-4, 2:-2] + q[4:, 2:-2] + q[2:-2, :-4] + q[2:-2, 4:]
    return _FIRST * near + _SECOND * far + (2.0 * _CENTRE) * _inner(q)


def _fold(padded: np.ndarray) -> np.ndarray:
    """Adjoint of the edge replication by ``PAD_CELLS``: the padding's derivative goes to the border cells."""
    p = PAD_CELLS
    for _ in range(2):
        inner = padded[p:-p].copy()
        inner[0] += padded[:p].sum(axis=0)
        inner[-1] += padded[-p:].sum(axis=0)
        padded = inner.T
    return padded
