"""The forward model that made OpenFWI, cell by cell: constant-density acoustic, no free surface.

Second order in time, fourth in space, on the map edge-replicated by 120 cells of damping on every
side (the benchmark's own program; DESIGN section 3 gives the equations and how closely they match a
genuine gather). Written once in Keras operations: compiled by XLA under TensorFlow and JAX alike, and
differentiable with respect to the velocity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import keras
import numpy as np
from keras import ops

from physics.acquisition import Acquisition
from physics.wavelet import ricker

PAD_CELLS = 120
# Amplitude that a wave keeps after crossing the sponge, which sets its strength.
_SPONGE_RESIDUE = 1e-7
# Fourth-order second derivative: centre, first and second neighbours.
_CENTRE, _FIRST, _SECOND = -5.0 / 2.0, 4.0 / 3.0, -1.0 / 12.0


def damping_profile(n_cells: int) -> np.ndarray:
    """(i / a)^2 of every padded cell along one axis: 0 inside, 1 at the outer edge; ``(n_cells + 240,)``."""
    ramp = (np.arange(PAD_CELLS) / (PAD_CELLS - 1)) ** 2
    return np.concatenate([ramp[::-1], np.zeros(n_cells), ramp])


def _padded_damping(n_depth: int, n_width: int) -> np.ndarray:
    """Relative damping of every padded cell; corners take the value of the left or right side."""
    along_z, along_x = damping_profile(n_depth), damping_profile(n_width)
    damping = np.broadcast_to(along_x[None, :], (len(along_z), len(along_x))).copy()
    damping[:, PAD_CELLS : PAD_CELLS + n_width] = along_z[:, None]
    return damping.astype(np.float32)


def record(velocity_mps, acquisition: Acquisition):
    """Gather ``(S, T, R)`` of one map ``(nz, nx)`` in m/s, as a backend tensor: traceable, differentiable."""
    a = acquisition
    velocity = ops.convert_to_tensor(velocity_mps, "float32")
    padded = _edge_pad(velocity)
    width_m = (PAD_CELLS - 1) * a.dx_m
    strength = ops.min(velocity) * (3.0 * np.log(1.0 / _SPONGE_RESIDUE) / (2.0 * width_m))
    damped = strength * _padded_damping(a.n_depth, a.n_width) * a.dt_s
    alpha = ops.square(padded * (a.dt_s / a.dx_m))
    # p+ = (2 - 5 alpha - d dt) p - (1 - d dt) p- + alpha (4/3 sum of first - 1/12 sum of second neighbours)
    here = (2.0 + 2.0 * _CENTRE * alpha - damped)[None]
    before = (1.0 - damped)[None]
    first, second = (alpha * _FIRST)[None], (alpha * _SECOND)[None]

    nz, nx = a.n_depth + 2 * PAD_CELLS, a.n_width + 2 * PAD_CELLS
    # The source term as a product of a row and a column: XLA fuses it, nothing is read from memory.
    in_row = np.zeros((1, nz, 1), np.float32)
    in_row[0, PAD_CELLS + a.source_row] = 1.0
    in_column = np.zeros((a.n_sources, 1, nx), np.float32)
    in_column[np.arange(a.n_sources), 0, np.array(a.source_cells) + PAD_CELLS] = 1.0
    at_source = ops.square(padded[PAD_CELLS + a.source_row] * a.dt_s)[None, None] * in_column
    wavelet = ops.convert_to_tensor(ricker(a))
    row = PAD_CELLS + a.receiver_row
    columns = np.array(a.receiver_cells) + PAD_CELLS
    first_column, contiguous = int(columns[0]), bool(np.all(np.diff(columns) == 1))

    def step(n, state):
        now, past, gather = state
        q = ops.pad(now, ((0, 0), (2, 2), (2, 2)))
        near = q[:, 1:-3, 2:-2] + q[:, 3:-1, 2:-2] + q[:, 2:-2, 1:-3] + q[:, 2:-2, 3:-1]
        far = q[:, :-4, 2:-2] + q[:, 4:, 2:-2] + q[:, 2:-2, :-4] + q[:, 2:-2, 4:]
        after = here * now - before * past + first * near + second * far + in_row * (at_source * wavelet[n])
        surface = after[:, row]
        if contiguous:
            surface = surface[:, first_column : first_column + len(columns)]
        else:
            surface = ops.take(surface, columns, axis=1)
        return after, now, ops.scatter_update(gather, ops.reshape(n, (1, 1)), surface[None])

    quiet = ops.zeros((a.n_sources, nz, nx))
    # Time first while recording: a row is written a step, by an operation that has a gradient.
    record_shape = (a.n_time, a.n_sources, a.n_receivers)
    *_, gather = ops.while_loop(
        lambda n, *_: n < a.n_time,
        lambda n, *state: (n + 1, *step(n, state)),
        (ops.convert_to_tensor(0), quiet, quiet, ops.zeros(record_shape)),
        maximum_iterations=a.n_time,
    )
    return ops.transpose(gather, (1, 0, 2))


def _edge_pad(velocity):
    """The map with its border cells repeated ``PAD_CELLS`` times outward."""
    p = PAD_CELLS
    sides = ops.concatenate(
        [ops.repeat(velocity[:, :1], p, axis=1), velocity, ops.repeat(velocity[:, -1:], p, axis=1)], axis=1
    )
    return ops.concatenate(
        [ops.repeat(sides[:1], p, axis=0), sides, ops.repeat(sides[-1:], p, axis=0)], axis=0
    )


@lru_cache(maxsize=8)
def compiled(acquisition: Acquisition) -> Callable:
    """``record`` for one survey, compiled once by XLA."""

    def function(velocity_mps):
        return record(velocity_mps, acquisition)

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    # Autograph has nothing to rewrite here, and warns of what it cannot read.
    return tf.function(function, jit_compile=True, autograph=False)


def model(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s, one after another."""
    run = compiled(acquisition)
    return np.stack([np.asarray(run(np.asarray(one, np.float32))) for one in velocity_mps])
