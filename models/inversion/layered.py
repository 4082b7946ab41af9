"""Fit the velocities and edges of a few regions to a recording, all together.

An update of single cells converges slowly where a layer is too fast and too thick by the same share: both errors must
shrink at once, and the misfit hardly falls. A map with one velocity per region and smoothly displaced edges has about a
hundred parameters instead of thousands of cells. The gather can be differentiated by each of them with one more
modelled gather, and the Levenberg-Marquardt method changes all of them in one step (Nocedal and Wright 2006, Numerical
Optimization, chapter 10).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from models.inversion.recording import RecordingMisfit
from models.inversion.regions import split

# Neighbouring regions are merged up to this loss, in (m/s)^2 cells. Two layers, each 10 cells thick, stay apart if
# their velocities differ by 45 m/s or more.
REGION_LOSS = 10_000.0
# Spacing, in cells along z and x, of the points at which a displacement is set; between them it is linear. Spacing is
# closest along the edges that each displacement moves: horizontal edges downwards, vertical edges across.
DOWN_CELLS, ACROSS_CELLS = (10.0, 5.0), (7.0, 17.0)
# Units of the parameters, and the change, in these units, by which a parameter is differentiated.
VELOCITY_MPS, DISPLACED_CELLS = 60.0, 0.7
VELOCITY_CHANGE, DISPLACED_CHANGE = 0.2, 0.35
# Largest step of a parameter, in units.
LONGEST_STEP = 3.0
# Damping at the start, relative to the mean curvature; its factors after a failed and a successful step; and how often
# a step is tried.
DAMPING, HARDER, EASIER, FAILURES = 1e-2, 6.0, 0.25, 6
# The fit ends with the first step that takes less than this share off the misfit beyond the noise.
LEAST_GAIN = 0.15

# Models the gather (S, T, R) of a map (nz, nx) in m/s.
Model = Callable[[np.ndarray], np.ndarray]


class LayeredMap:
    """A map of regions with one velocity each and displaced edges.

    The parameters are the velocities of the regions, then the displacements downwards and across at their points, all
    in the units of this module.

    Attributes:
        regions: Number of regions.
        start: Parameters of the map without displacement.
        changes: Change of each parameter for its derivative.

    Args:
        regions: The region of each cell, ``(nz, nx)``.
        velocities: Of each region, in m/s.
        bounds: Least and largest velocity in m/s.
    """

    def __init__(self, regions: np.ndarray, velocities: np.ndarray, bounds: tuple[float, float]) -> None:
        self._region_of, self._bounds = regions, bounds
        self.regions = len(velocities)
        self._cells = np.array(np.mgrid[: regions.shape[0], : regions.shape[1]], np.float64)
        self._down, self._across = (_hats(regions.shape, spacing) for spacing in (DOWN_CELLS, ACROSS_CELLS))
        self.start = np.zeros(self.regions + len(self._down) + len(self._across))
        self.start[: self.regions] = velocities / VELOCITY_MPS
        self.changes = np.full(len(self.start), DISPLACED_CHANGE)
        self.changes[: self.regions] = VELOCITY_CHANGE

    def draw(self, parameters: np.ndarray) -> np.ndarray:
        """Return the map ``(nz, nx)`` in m/s; an edge within a cell gives it a value between."""
        velocities, down, across = np.split(parameters, (self.regions, self.regions + len(self._down)))
        moved = self._cells + DISPLACED_CELLS * np.stack(
            [np.tensordot(down, self._down, 1), np.tensordot(across, self._across, 1)]
        )
        drawn = map_coordinates(VELOCITY_MPS * velocities[self._region_of], moved, order=1, mode="nearest")
        return np.clip(drawn, *self._bounds)


@dataclass(frozen=True)
class Fit:
    """A state of the fit: parameters, map ``(nz, nx)`` in m/s, gather ``(S, T, R)``, residual, and misfit."""

    parameters: np.ndarray
    velocity: np.ndarray
    gather: np.ndarray
    residual: np.ndarray
    misfit: float


class LayeredFit:
    """Steps of the Levenberg-Marquardt method, starting from a map that is split into regions.

    Attributes:
        now: The state after the latest step.
        regions: Number of regions.
        parameters: Indices of the parameters that change the map. The next step models one gather for each.
    """

    def __init__(
        self, velocity: np.ndarray, bounds: tuple[float, float], misfit: RecordingMisfit, model: Model
    ) -> None:
        self._map = LayeredMap(*split(velocity, REGION_LOSS), bounds)
        self._misfit, self._model = misfit, model
        self._damping = DAMPING
        self.now = self._at(self._map.start)
        self.regions = self._map.regions
        self.parameters = self._find_parameters()

    def step(self) -> bool:
        """Take one step; return False if the misfit beyond the noise falls by less than ``LEAST_GAIN``."""
        beyond_noise = self._misfit.beyond_noise
        before = beyond_noise(self.now.misfit)
        return self._step() and beyond_noise(self.now.misfit) < (1.0 - LEAST_GAIN) * before

    def _step(self) -> bool:
        """Take one step; return False if none lowers the misfit."""
        if not self.parameters:
            return False
        derivatives = self._differentiate()
        curvature = (derivatives.T @ derivatives).astype(np.float64)
        slope = (derivatives.T @ self.now.residual).astype(np.float64)
        mean = np.trace(curvature) / len(slope)
        for _ in range(FAILURES):
            damped = curvature + self._damping * mean * np.eye(len(slope))
            parameters = self.now.parameters.copy()
            parameters[self.parameters] -= np.clip(
                np.linalg.solve(damped, slope), -LONGEST_STEP, LONGEST_STEP
            )
            found = self._at(parameters)
            if found.misfit < self.now.misfit:
                self.now = found
                self.parameters = self._find_parameters()
                self._damping *= EASIER
                return True
            self._damping *= HARDER
        return False

    def _at(self, parameters: np.ndarray) -> Fit:
        velocity = self._map.draw(parameters)
        gather = self._model(velocity)
        residual = self._misfit.residual(gather).ravel().astype(np.float32)
        return Fit(parameters, velocity, gather, residual, self._misfit.value(gather))

    def _changed(self, number: int) -> tuple[np.ndarray, float]:
        """Return the parameters with one changed for its derivative, and the change."""
        change = self._map.changes[number]
        parameters = self.now.parameters.copy()
        parameters[number] += change
        return parameters, float(change)

    def _find_parameters(self) -> list[int]:
        found = []
        for number in range(len(self._map.start)):
            parameters, change = self._changed(number)
            moved = np.abs(self._map.draw(parameters) - self.now.velocity).sum()
            if moved >= change * VELOCITY_MPS:
                found.append(number)
        return found

    def _differentiate(self) -> np.ndarray:
        """Return the residual's derivatives by the parameters that change the map, ``(n, parameters)``."""
        derivatives = np.empty((len(self.now.residual), len(self.parameters)), np.float32)
        for column, number in enumerate(self.parameters):
            parameters, change = self._changed(number)
            residual = self._misfit.residual(self._model(self._map.draw(parameters))).ravel()
            derivatives[:, column] = (residual - self.now.residual) / change
        return derivatives


def _hats(shape: tuple[int, ...], spacing: tuple[float, float]) -> np.ndarray:
    """Return products of hat functions about ``spacing`` cells apart along z and x, ``(points, nz, nx)``."""
    down, across = (
        _hats_of_axis(n, max(2, 1 + round(n / cells))) for n, cells in zip(shape, spacing, strict=True)
    )
    return np.einsum("iz,jx->ijzx", down, across).reshape(-1, *shape)


def _hats_of_axis(n: int, points: int) -> np.ndarray:
    places = np.linspace(0, points - 1, n)
    return np.maximum(0.0, 1.0 - np.abs(places[None] - np.arange(points)[:, None]))
