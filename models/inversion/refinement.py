"""Refine a predicted map by full-waveform inversion from latents.

The map is ``start + uncertainty * smooth(x)``: its start plus a smoothed field ``x`` in units of the predicted
uncertainty, clipped to the survey's velocity bounds. The objective is

    misfit(gather of the map) + |x|^2 / 2 + TOTAL_VARIATION * (total variation of the map)

The first two terms are the negative logarithms of a likelihood and a prior. It is minimised by SciPy's L-BFGS-B, with
the exact adjoint of the benchmark's scheme (decision 22).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from scipy.optimize import minimize

from models.inversion.latent_model import LatentModel
from models.inversion.roughness import Roughness
from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient
from physics.modelling import model_gathers
from physics.normalise import denormalise_velocity, normalise_velocity

TOTAL_VARIATION = 3.0
# Contrasts below this value (normalised map; 45 m/s) are penalised quadratically, so the derivative is smooth at zero.
CONTRAST = 0.03


# Called with the iterations done, the misfit and the map (nz, nx) in m/s.
OnIteration = Callable[[int, float, np.ndarray], None]


class Misfit(Protocol):
    """Half the sum of squares of a gather's residual, in units of its ``noise``.

    Attributes:
        smooth_cells: Correlation length of the map update, in cells, vertical and horizontal. Less informative data
            need a longer one.
        share: Position of the refined map between the start (0) and the minimum of the objective (1).
    """

    unit: str
    noise: float
    smooth_cells: tuple[float, float]
    share: float

    def __call__(self, gather: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the misfit of a gather ``(S, T, R)`` and its derivative with respect to the gather ``(S, T, R)``."""
        ...

    def size(self, value: float) -> float:
        """Return the misfit as a root mean square in ``unit``."""
        ...


class LatentMisfit:
    """Misfit to the latents that devices sent.

    Args:
        received: ``(n_devices, latent)`` float.
        steps: Resolution of each value in int8 steps, same shape: 1 for 8 bits, 16 for 4 bits, infinite for values not
            sent. ``model.spread`` defines a step.
    """

    unit = "int8 steps"
    # Added to the rounding error. The float encoder deviates by half a step; a larger value keeps the fit from chasing
    # that error.
    noise = 3.0
    smooth_cells = (1.0, 6.0)
    # Many maps share these latents. The errors of start and minimum are partly independent, so their mean has a smaller
    # error.
    share = 0.5

    def __init__(self, model: LatentModel, received: np.ndarray, steps: np.ndarray) -> None:
        self._count = int(np.isfinite(steps).sum())
        wanted = np.asarray(received, np.float32)
        uncertain = np.sqrt(self.noise**2 + np.square(steps, dtype=np.float64) / 12)
        weights = (1.0 / (uncertain * model.spread)).astype(np.float32)
        self._of = value_and_derivative(
            lambda gather: ops.sum(ops.square((model.encode(gather) - wanted) * weights)) / 2
        )

    def __call__(self, gather: np.ndarray) -> tuple[float, np.ndarray]:
        return self._of(gather)

    def size(self, value: float) -> float:
        return float(np.sqrt(2 * value / self._count)) * self.noise


@dataclass(frozen=True)
class Refined:
    """Map and uncertainty ``(nz, nx)``, objective and misfit (root mean square, in ``unit``) before and after."""

    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    iterations: int
    modelled: int
    objective: tuple[float, float]
    misfit: tuple[float, float]
    unit: str
    settings: dict[str, Any]

    @property
    def gained(self) -> bool:
        return self.objective[1] < self.objective[0]


def refine(
    velocity_mps: np.ndarray,
    uncertainty_mps: np.ndarray,
    misfit: Misfit,
    acquisition: Acquisition,
    iterations: int,
    on_iteration: OnIteration = lambda done, misfit, velocity_mps: None,
) -> Refined:
    """Refine a map ``(nz, nx)`` in m/s, with its uncertainty, by minimising the objective of this module.

    ``on_iteration`` is called with the iterations done, the misfit and the map in m/s.

    Raises:
        ModellingError: The waves of this survey cannot be modelled.
    """
    objective = _Objective(velocity_mps, uncertainty_mps, misfit, acquisition)
    done = 0

    def after_iteration(x: np.ndarray) -> None:
        nonlocal done
        done += 1
        on_iteration(done, misfit.size(objective.tried[-1][1]), _mps(objective.to_map(x), acquisition))

    found = minimize(
        objective,
        np.zeros(np.size(velocity_mps)),
        jac=True,
        method="L-BFGS-B",
        callback=after_iteration,
        options={"maxiter": iterations, "maxcor": 20},
    )
    # Each gradient models its map once more.
    modelled = 2 * len(objective.tried) + 1
    refined, _ = objective.measure(misfit.share * found.x)
    (before, misfit_before), (after, misfit_after) = objective.tried[0], objective.tried[-1]
    return Refined(
        velocity_mps=_mps(refined, acquisition),
        uncertainty_mps=np.asarray(uncertainty_mps, np.float32),
        iterations=done,
        modelled=modelled,
        objective=(before, after),
        misfit=(misfit.size(misfit_before), misfit.size(misfit_after)),
        unit=misfit.unit,
        settings={
            "smooth_cells": misfit.smooth_cells,
            "noise": misfit.noise,
            "share": misfit.share,
            "total_variation": TOTAL_VARIATION,
            "contrast": CONTRAST,
        },
    )


class _Objective:
    """Objective of this module, a function of ``x (nz * nx,)``.

    Attributes:
        tried: Objective and misfit of each map that was tried.
    """

    def __init__(
        self, velocity_mps: np.ndarray, uncertainty_mps: np.ndarray, misfit: Misfit, acquisition: Acquisition
    ) -> None:
        self.tried: list[tuple[float, float]] = []
        self._misfit, self._acquisition = misfit, acquisition
        self._half_range_mps = (acquisition.velocity_max_mps - acquisition.velocity_min_mps) / 2
        self._start = normalise_velocity(np.asarray(velocity_mps, np.float64), acquisition)
        self._scale = np.asarray(uncertainty_mps, np.float64) / self._half_range_mps
        self._along_z, self._along_x = map(smoothing, self._start.shape, misfit.smooth_cells)
        self._roughness = Roughness(self._start.shape, CONTRAST)

    def to_map(self, x: np.ndarray) -> np.ndarray:
        """Return the normalised map ``(nz, nx)``."""
        return np.clip(self._unclipped(x), -1.0, 1.0)

    def _unclipped(self, x: np.ndarray) -> np.ndarray:
        field = self._along_z @ x.reshape(self._start.shape) @ self._along_x.T
        return self._start + self._scale * field

    def measure(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append to ``tried``; return the map and the misfit's derivative by the gather ``(S, T, R)``."""
        candidate = self.to_map(x)
        off, by_gather = self._misfit(
            model_gathers(_mps(candidate, self._acquisition)[None, None], self._acquisition)[0]
        )
        rough = TOTAL_VARIATION * self._roughness.value(candidate)
        self.tried.append((float(off + np.sum(np.square(x)) / 2 + rough), off))
        return candidate, by_gather

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient ``(nz * nx,)``."""
        candidate, by_gather = self.measure(x)
        _, by_velocity = misfit_and_gradient(
            _mps(candidate, self._acquisition), self._acquisition, lambda source, _: (0.0, by_gather[source])
        )
        by_map = TOTAL_VARIATION * self._roughness.derivative(candidate) + self._half_range_mps * by_velocity
        # A clipped cell does not change with x.
        by_map[np.abs(self._unclipped(x)) > 1.0] = 0.0
        return self.tried[-1][0], (self._along_z.T @ (self._scale * by_map) @ self._along_x).ravel() + x


def _mps(normalised: np.ndarray, a: Acquisition) -> np.ndarray:
    return denormalise_velocity(normalised, a).astype(np.float32)


def smoothing(n: int, cells: float) -> np.ndarray:
    """Return a matrix ``(n, n)`` that correlates white noise over ``cells`` (standard deviation) at unit variance."""
    distance = np.subtract.outer(np.arange(n), np.arange(n)) / cells
    weights = np.exp(-np.square(distance) / 2)
    return weights / np.sqrt(np.square(weights).sum(axis=1, keepdims=True))


def value_and_derivative(function: Callable) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Compile a traceable scalar function of one array together with its derivative."""
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(function))
    else:
        import tensorflow as tf

        def both(values):
            with tf.GradientTape() as tape:
                tape.watch(values)
                value = function(values)
            return value, tape.gradient(value, values)

        compiled = tf.function(both, jit_compile=True, autograph=False)

    def call(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, derivative = compiled(ops.convert_to_tensor(values, "float32"))
        return float(value), np.asarray(derivative)

    return call
