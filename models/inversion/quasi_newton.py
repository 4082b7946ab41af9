"""Minimise misfit + weight * roughness by L-BFGS that keeps the two curvatures apart.

The weight follows the misfit beyond the noise at every iteration. The curvature pairs that L-BFGS remembers would be
wrong after each change of the weight. So only the misfit's changes are remembered, and the roughness's known matrix is
added to them for the weight of the moment (structured quasi-Newton; Nocedal and Wright 2006, Numerical Optimization,
chapter 7, has the recursion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from models.inversion.roughness import Roughness

# Misfit of a map (nz, nx) and its derivative (nz, nx).
Misfit = Callable[[np.ndarray], tuple[float, np.ndarray]]

# Pairs of step and change of gradient that are remembered.
PAIRS = 20
# Largest change of the first step, in units.
FIRST_STEP = 0.1
# Armijo condition, c1; shortening of a step that misses it, and how often.
DECREASE, SHORTENING, SHORTENINGS = 1e-4, 0.4, 8
# Least cosine between step and change of gradient of a pair.
LEAST_CURVATURE = 1e-6
# Least share of the misfit that counts as beyond the noise.
LEAST_EXCESS = 0.02
# The roughness counts as at least this step a cell, in m/s, so that a uniform map may get layers.
LEAST_STEP_MPS = 5.0


def excess(misfit: float, noise: float) -> float:
    """Return the part of a misfit that counts as beyond the noise, at least ``LEAST_EXCESS`` of it."""
    return max(misfit - noise, LEAST_EXCESS * misfit)


@dataclass(frozen=True)
class Point:
    """A map ``(nz, nx)``, its misfit, the misfit's derivative ``(nz, nx)``, and the pairs that led to it."""

    velocity: np.ndarray
    misfit: float
    gradient: np.ndarray
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def at(cls, velocity: np.ndarray, misfit: Misfit) -> Point:
        """Compute the misfit of a map."""
        return cls(velocity, *misfit(velocity))


class Descent:
    """Iterations on one misfit.

    Args:
        misfit: To minimise.
        noise: The misfit that noise leaves.
        roughness: Added to it.
        unit: Change that counts as one, ``(nz, nx)`` in m/s.
        bounds: Least and largest velocity in m/s.
    """

    def __init__(
        self,
        misfit: Misfit,
        noise: float,
        roughness: Roughness,
        unit: np.ndarray,
        bounds: tuple[float, float],
    ) -> None:
        self._misfit, self._noise, self._roughness = misfit, noise, roughness
        self._unit, self._bounds = unit, bounds
        self._scaling = sp.diags(unit.ravel())

    def step(self, point: Point, share: float) -> Point | None:
        """Take one iteration; return None if no step lowers the objective.

        Args:
            share: Weight of the roughness, such that a relative change of it counts ``share`` times as much as one of
                the misfit beyond the noise.
        """
        matrix = self._roughness.matrix(point.velocity)
        value = self._roughness.value(point.velocity)
        least = self._roughness.of_steps(LEAST_STEP_MPS, point.velocity.size)
        weight = share * excess(point.misfit, self._noise) / max(value, least)
        slopes = (matrix @ point.velocity.ravel()).reshape(point.velocity.shape)
        gradient = (self._unit * (point.gradient + weight * slopes)).ravel()
        direction = _direction(gradient, point.pairs, weight * (self._scaling @ matrix @ self._scaling))
        slope = float(gradient @ direction)
        objective, length = point.misfit + weight * value, 1.0
        for _ in range(SHORTENINGS if slope < 0 else 0):
            change = self._unit * direction.reshape(self._unit.shape)
            velocity = np.clip(point.velocity + length * change, *self._bounds)
            misfit, by_map = self._misfit(velocity)
            if misfit + weight * self._roughness.value(velocity) <= objective + DECREASE * length * slope:
                moved = ((velocity - point.velocity) / self._unit).ravel()
                turned = (self._unit * (by_map - point.gradient)).ravel()
                pairs = point.pairs
                if moved @ turned > LEAST_CURVATURE * np.sqrt((moved @ moved) * (turned @ turned)):
                    pairs = (*pairs, (moved, turned))[-PAIRS:]
                return Point(velocity, misfit, by_map, pairs)
            length *= SHORTENING
        # The remembered curvature may be to blame.
        return self.step(Point(point.velocity, point.misfit, point.gradient), share) if point.pairs else None


def _direction(
    gradient: np.ndarray, pairs: tuple[tuple[np.ndarray, np.ndarray], ...], curvature: sp.spmatrix
) -> np.ndarray:
    """Return minus the inverse curvature times the gradient, all in units.

    Args:
        gradient: ``(n,)``.
        pairs: Steps and the changes of the misfit's gradient along them.
        curvature: Of the weighted roughness, ``(n, n)``.
    """
    if not pairs:
        return -gradient * (FIRST_STEP / np.abs(gradient).max(initial=1e-300))
    along = gradient
    known = [(moved, turned + curvature @ moved) for moved, turned in pairs]
    shares = []
    for moved, turned in reversed(known):
        shares.append((moved @ along) / (moved @ turned))
        along = along - shares[-1] * turned
    moved, turned = pairs[-1]
    scale = (turned @ turned) / (moved @ turned)
    along = splu((scale * sp.eye(len(gradient)) + curvature).tocsc()).solve(along)
    for (moved, turned), share in zip(known, reversed(shares), strict=True):
        along = along + moved * (share - (turned @ along) / (moved @ turned))
    return -along
