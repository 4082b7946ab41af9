"""OpenFWI's forward model, reproduced cell by cell: constant-density acoustic, no free surface.

The scheme is second order in time and fourth in space. The map is edge-replicated by 120 damped cells on every side.
The padded grid is periodic, as in the benchmark's program: waves that leave at the top re-enter at the bottom
(docs/decisions/0018).

It is written once in Keras operations and compiled by XLA under TensorFlow and JAX. It is differentiable with respect
to the velocity. The gradient's memory holds a few steps, not all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, inf

import keras
import numpy as np
from keras import ops

from physics.acquisition import Acquisition
from physics.engines.scheme import MARGIN_CELLS, PAD_CELLS, sponge_per_mps
from physics.errors import ModellingError
from physics.wavelet import ricker

# Fourth-order second derivative: centre, first and second neighbours.
_CENTRE, _FIRST, _SECOND = -5.0 / 2.0, 4.0 / 3.0, -1.0 / 12.0
# Two steps per iteration let XLA overwrite the oldest field without a copy.
_STEPS_A_TURN = 2
# The gradient stores the fields between blocks and recomputes those within a block.
_TURNS_A_BLOCK = 10
_BLOCK_STEPS = _STEPS_A_TURN * _TURNS_A_BLOCK
# Times at which the computed part of the grid changes, as fractions of the record. Nine parts save 28 % of the work;
# each part is a loop to compile. Short records use one part.
_PART_ENDS = (0.06, 0.12, 0.18, 0.24, 0.76, 0.82, 0.88, 0.94, 1.0)
_LEAST_PARTED_STEPS = 500


@dataclass(frozen=True)
class _Span:
    """Cells ``[first, first + count)`` along one axis of the padded grid, which is a ring of ``ring`` cells.

    ``first`` may be negative: cell -1 is the last cell of the ring.
    """

    first: int
    count: int
    ring: int

    @property
    def closed(self) -> bool:
        """True if the span is the whole ring, so that its two ends are neighbours."""
        return self.count == self.ring

    def cells(self) -> np.ndarray:
        """Index of each cell in the padded grid, ``(count,)``."""
        return np.arange(self.first, self.first + self.count) % self.ring

    def move(self, field, other: _Span, axis: int):
        """Return ``field`` of span ``other`` along ``axis`` on this span; cells outside ``other`` are zero."""
        widths = [(0, 0)] * len(field.shape)
        widths[axis] = (0, other.ring - other.count)
        return ops.take(ops.pad(field, widths), (self.cells() - other.first) % self.ring, axis=axis)


def _span(sources: tuple[int, ...], receivers: tuple[int, ...], n_map: int, out: float, back: float) -> _Span:
    """Return the cells within ``out`` of a source and ``back`` of a receiver on the ring.

    Positions count from the map's first cell.
    """
    ring = n_map + 2 * PAD_CELLS
    reached = (min(sources) - out, max(sources) + out)
    heard = (min(receivers) - back, max(receivers) + back)
    shorter = min(reached, heard, key=lambda ends: ends[1] - ends[0])
    if reached[1] >= heard[0] + ring or heard[1] >= reached[0] + ring:
        # A wave can travel around the ring, so the two ranges may also overlap on the far side.
        low, high = shorter
    else:
        low, high = max(reached[0], heard[0]), min(reached[1], heard[1])
    both = (*sources, *receivers)
    low, high = min(low, *both), max(high, *both)
    if high - low + 1 >= ring:
        return _Span(0, ring, ring)
    return _Span(int(low) + PAD_CELLS, int(high - low) + 1, ring)


@dataclass(frozen=True)
class _Window:
    """Part of the padded grid that is computed between two time steps."""

    z: _Span
    x: _Span

    def shape(self, n_sources: int) -> tuple[int, int, int]:
        return (n_sources, self.z.count, self.x.count)

    def cut(self, field):
        """Cut this part out of a whole field ``(nz, nx)``."""
        return ops.take(ops.take(field, self.z.cells(), axis=0), self.x.cells(), axis=1)

    def take_over(self, field, other: _Window):
        """Copy a wave field ``(S, nz, nx)`` of window ``other`` to this window; cells outside ``other`` are zero."""
        return self.x.move(self.z.move(field, other.z, axis=1), other.x, axis=2)


def _window(first: int, last: int, a: Acquisition, fastest_mps: float) -> _Window:
    """Return the cells that matter between steps ``first`` and ``last``.

    A wave can have reached them by step ``last``, and can still reach a receiver from them after step ``first``.
    """
    cells_a_step = fastest_mps * a.dt_s / a.dx_m
    if cells_a_step == inf:
        out = back = inf
    else:
        out = ceil(last * cells_a_step) + MARGIN_CELLS
        back = ceil((a.n_time - first) * cells_a_step) + MARGIN_CELLS
    return _Window(
        _span((a.source_row,), (a.receiver_row,), a.n_depth, out, back),
        _span(a.source_cells, a.receiver_cells, a.n_width, out, back),
    )


def damping_profile(n_cells: int) -> np.ndarray:
    """Return (i / a)^2 of every padded cell along one axis, ``(n_cells + 240,)``: 0 inside, 1 at the outer edge."""
    ramp = (np.arange(PAD_CELLS) / (PAD_CELLS - 1)) ** 2
    return np.concatenate([ramp[::-1], np.zeros(n_cells), ramp])


def _padded_damping(n_depth: int, n_width: int) -> np.ndarray:
    """Return the relative damping of every padded cell; corners take the value of the left or right side."""
    along_z, along_x = damping_profile(n_depth), damping_profile(n_width)
    damping = np.broadcast_to(along_x[None, :], (len(along_z), len(along_x))).copy()
    damping[:, PAD_CELLS : PAD_CELLS + n_width] = along_z[:, None]
    return damping.astype(np.float32)


def _repeat(times: int, body: Callable, state: tuple) -> tuple:
    """Apply ``body(i, *state) -> state`` ``times`` times, in a form that the backend can differentiate."""
    if keras.backend.backend() != "tensorflow":
        return ops.fori_loop(0, times, lambda i, now: body(i, *now), state)
    # XLA needs a bound to size the stored states.
    _, *state = ops.while_loop(
        lambda i, *_: i < times,
        lambda i, *now: (i + 1, *body(i, *now)),
        (ops.convert_to_tensor(0), *state),
        maximum_iterations=times,
    )
    return tuple(state)


def record(velocity_mps, acquisition: Acquisition, fastest_mps: float = inf):
    """Model the gather ``(S, T, R)`` of one map ``(nz, nx)`` in m/s, as a traceable, differentiable backend tensor.

    ``fastest_mps`` bounds the map's velocities. With it, cells from which no wave can reach a receiver within the
    record are skipped, which saves a quarter of the work. The gather is the same to about 1e-6.
    """
    a = acquisition
    velocity = ops.convert_to_tensor(velocity_mps, "float32")
    padded = _edge_pad(velocity)
    strength = ops.min(velocity) * sponge_per_mps(a.dx_m)
    kept = 1.0 - strength * _padded_damping(a.n_depth, a.n_width) * a.dt_s
    alpha = ops.square(padded * (a.dt_s / a.dx_m))

    n_blocks = ceil(a.n_time / _BLOCK_STEPS)
    ends = _PART_ENDS if a.n_time >= _LEAST_PARTED_STEPS and fastest_mps < inf else (1.0,)
    edges = [0, *(round(end * n_blocks) for end in ends)]
    wavelet = np.zeros(n_blocks * _BLOCK_STEPS, np.float32)
    wavelet[: a.n_time] = ricker(a)

    last_window = _window(0, edges[1] * _BLOCK_STEPS, a, fastest_mps)
    now = past = ops.zeros(last_window.shape(a.n_sources))
    traces = []
    for first, last in pairwise(edges):
        window = _window(first * _BLOCK_STEPS, last * _BLOCK_STEPS, a, fastest_mps)
        now, past = window.take_over(now, last_window), window.take_over(past, last_window)
        last_window = window
        part = wavelet[first * _BLOCK_STEPS : last * _BLOCK_STEPS]
        now, past, recorded = _propagate(now, past, padded, kept, alpha, part, window, a)
        traces.append(recorded)
    return ops.transpose(ops.concatenate(traces)[: a.n_time], (1, 0, 2))


def _propagate(now, past, padded, kept, alpha, wavelet, window: _Window, a: Acquisition):
    """Propagate two fields ``(S, nz, nx)`` through ``wavelet (n,)``; return both and the record ``(n, S, R)``."""
    row = PAD_CELLS + a.source_row - window.z.first
    source_columns = np.array(a.source_cells) + PAD_CELLS - window.x.first
    _, nz, nx = now.shape
    # The source term is a product of a row and a column, which XLA fuses without memory reads.
    in_row = np.zeros((1, nz, 1), np.float32)
    in_row[0, row] = 1.0
    in_column = np.zeros((a.n_sources, 1, nx), np.float32)
    in_column[np.arange(a.n_sources), 0, source_columns] = 1.0
    at_source = ops.square(window.cut(padded)[row] * a.dt_s)[None, None] * in_column
    receiver_row = PAD_CELLS + a.receiver_row - window.z.first
    columns = np.array(a.receiver_cells) + PAD_CELLS - window.x.first
    first_column, contiguous = int(columns[0]), bool(np.all(np.diff(columns) == 1))
    kept, alpha = window.cut(kept)[None], window.cut(alpha)[None]
    signal = ops.convert_to_tensor(wavelet)
    advance = _advance((window.z.closed, window.x.closed))

    def step(n, now, past, kept, alpha, at_source):
        after = advance(now, past, kept, alpha) + in_row * (at_source * signal[n])
        surface = after[:, receiver_row]
        if contiguous:
            surface = surface[:, first_column : first_column + len(columns)]
        else:
            surface = ops.take(surface, columns, axis=1)
        return after, surface

    def turn(n, now, past, *earth):
        surfaces = []
        for k in range(_STEPS_A_TURN):
            after, surface = step(n + k, now, past, *earth)
            now, past = after, now
            surfaces.append(surface)
        return now, past, ops.stack(surfaces)

    def block(start, now, past, *earth):
        def one(i, now, past, traces):
            now, past, recorded = turn(start + i * _STEPS_A_TURN, now, past, *earth)
            return now, past, ops.scatter_update(traces, ops.reshape(i, (1, 1)), recorded[None])

        empty = ops.zeros((_TURNS_A_BLOCK, _STEPS_A_TURN, a.n_sources, a.n_receivers))
        return _repeat(_TURNS_A_BLOCK, one, (now, past, empty))

    again = keras.remat(block)

    def one_block(i, now, past, traces):
        # The medium is an argument, not captured: recomputed code has gradients for its arguments only.
        now, past, recorded = again(i * _BLOCK_STEPS, now, past, kept, alpha, at_source)
        return now, past, ops.scatter_update(traces, ops.reshape(i, (1, 1)), recorded[None])

    n_blocks = len(wavelet) // _BLOCK_STEPS
    empty = ops.zeros((n_blocks, _TURNS_A_BLOCK, _STEPS_A_TURN, a.n_sources, a.n_receivers))
    now, past, traces = _repeat(n_blocks, one_block, (now, past, empty))
    return now, past, ops.reshape(traces, (len(wavelet), a.n_sources, a.n_receivers))


def _bend(field, closed: tuple[bool, bool]):
    """Return the fourth-order Laplacian of ``(S, nz, nx)``, times the squared cell size. It is its own adjoint.

    A closed axis is periodic, as in the benchmark's program. Beyond an open end, the field is zero.
    """
    # Extending one axis at a time is a fifth faster than extending both.
    z, x = _extend(field, 1, closed[0]), _extend(field, 2, closed[1])
    near = z[:, 1:-3] + z[:, 3:-1] + x[:, :, 1:-3] + x[:, :, 3:-1]
    far = z[:, :-4] + z[:, 4:] + x[:, :, :-4] + x[:, :, 4:]
    return _FIRST * near + _SECOND * far + (2.0 * _CENTRE) * field


def _extend(field, axis: int, closed: bool):
    """Extend ``field`` by two cells at each end of ``axis``: periodically, or with zeros."""
    if not closed:
        return ops.pad(field, [(2, 2) if i == axis else (0, 0) for i in range(3)])
    head, tail = (field[:, :2], field[:, -2:]) if axis == 1 else (field[:, :, :2], field[:, :, -2:])
    return ops.concatenate([tail, field, head], axis=axis)


def _advance(closed: tuple[bool, bool]) -> Callable:
    """Advance one step: p+ = p + (1 - d dt) (p - p-) + alpha (Laplacian of p)."""

    # Hand-written gradient: the automatic one stores six fields per step instead of two.
    @ops.custom_gradient
    def advance(now, past, kept, alpha):
        def gradient(upstream):
            return (
                upstream + kept * upstream + _bend(alpha * upstream, closed),
                -kept * upstream,
                ops.sum(upstream * (now - past), axis=0, keepdims=True),
                ops.sum(upstream * _bend(now, closed), axis=0, keepdims=True),
            )

        return now + kept * (now - past) + alpha * _bend(now, closed), gradient

    return advance


def _edge_pad(velocity):
    """Repeat the map's border cells ``PAD_CELLS`` times outward."""
    p = PAD_CELLS
    sides = ops.concatenate(
        [ops.repeat(velocity[:, :1], p, axis=1), velocity, ops.repeat(velocity[:, -1:], p, axis=1)], axis=1
    )
    return ops.concatenate(
        [ops.repeat(sides[:1], p, axis=0), sides, ops.repeat(sides[-1:], p, axis=0)], axis=0
    )


@lru_cache(maxsize=8)
def compiled(acquisition: Acquisition, fastest_mps: float = inf) -> Callable:
    """Return ``record`` for one survey and bound, compiled once by XLA. Raises ``ModellingError`` under PyTorch."""
    return compile_function(lambda velocity_mps: record(velocity_mps, acquisition, fastest_mps))


def compile_function(function: Callable) -> Callable:
    """Compile a ``function`` of arrays that calls ``record`` with XLA. Raises ``ModellingError`` under PyTorch."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend != "tensorflow":
        raise ModellingError(
            f"modelling: engine openfwi expected Keras on tensorflow or jax, got {backend}; "
            "set KERAS_BACKEND or take engine deepwave"
        )
    import tensorflow as tf

    # Autograph has nothing to convert here and warns about code that it cannot parse.
    return tf.function(function, jit_compile=True, autograph=False)


def model(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Model gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s, one after another."""
    # The survey's velocity bound lets its maps share one program. Faster maps use rounded-up bounds.
    fastest_mps = max(acquisition.velocity_max_mps, ceil(float(velocity_mps.max()) / 500) * 500.0)
    run = compiled(acquisition, fastest_mps)
    return np.stack([np.asarray(run(np.asarray(one, np.float32))) for one in velocity_mps])
