"""Full-waveform inversion of a recorded gather, starting from a predicted map.

Let r be the difference between the modelled and the recorded gather, and W the inverse of the recording's local
strength (and of its noise). The objective is

    mean of |W lowpass(r)|^2 / 2 + share * (misfit) / (roughness) * (roughness of the map)

where the misfit is the first term without what noise leaves of it, and its ratio to the roughness is that of the latest
map. So a map gets rougher only if that lowers the misfit ``share`` times as much, relative to both. It is minimised by
``Descent``, first for the lowest frequencies, then for all (multiscale inversion; Bunks et al. 1995, Geophysics 60). A
few shares compete at the start: the one that leaves the least misfit goes on. Maps of few sharp layers want a large
share, and others diverge with it (docs/results/definitive.md).

A map that is expected to be blocky is then taken for one of few regions, whose velocities and edges are fitted
together (``models.inversion.layered``), and refined cell by cell again (docs/decisions/0026).

The gradient is the exact adjoint of the benchmark's scheme (docs/decisions/0022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil

import numpy as np
from scipy.ndimage import gaussian_filter1d

from models.inversion.layered import LayeredFit
from models.inversion.quasi_newton import Descent, Point, excess
from models.inversion.recording import Lowpass, Recording, RecordingMisfit
from models.inversion.refinement import OnIteration, Refined
from models.inversion.roughness import Roughness
from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient
from physics.modelling import model_gathers

# Contrast in m/s below which a step costs its square instead of its height.
PRIORS = {"blocky": 20.0, "smooth": 300.0}


@dataclass(frozen=True)
class Stage:
    """Part of an inversion.

    Attributes:
        cut: Low-pass in units of the wavelet's peak frequency; None for all frequencies.
        end: Share of all iterations that are done at its end.
        factor: Of the roughness's share.
        layered: Fit regions in place of cells.
    """

    cut: float | None
    end: float
    factor: float = 1 / 10
    layered: bool = False


STAGES = (
    Stage(0.27, 0.12, 1.0),
    Stage(0.47, 0.25, 1 / 3),
    Stage(None, 0.33),
    Stage(None, 0.86, layered=True),
    Stage(None, 0.93),
    Stage(None, 1.0),
)
# Fewest iterations for fitting regions. A gather counts as this share of an iteration, which models one and its
# adjoint.
LEAST_LAYERED_ITERATIONS, GATHER_ITERATIONS = 150, 0.42
# Regions are fitted where there are iterations for so many steps.
LEAST_STEPS = 3
# Regions are given up if their misfit beyond the noise, after the stage of cells that follows, is this many times that
# of before.
GIVEN_UP = 2.0
# Shares of the roughness that compete at the start. The last one is used where there are too few iterations.
SHARES = (10.0, 3.0, 1.0)
# Iterations of each competing share: at most, and one of how many.
TRIAL_ITERATIONS, LEAST_TRIALS = 20, 15
# Stages with fewer iterations are skipped, because they would not begin to converge.
LEAST_STAGE_ITERATIONS = 5
# Unit of change, m/s, at the top and at the bottom of the map: weaker waves reach deep cells.
UNIT_MPS = (100.0, 450.0)
# Mean absolute error in m/s that an inversion leaves per unit of misfit beyond the noise, measured on drawn maps
# (docs/results/definitive.md).
UNEXPLAINED_MPS = 5_000.0
# Random probes for the diagonal of the Gauss-Newton matrix, and the smoothing of the diagonal in cells.
PROBES, PROBE_CELLS = 4, 2.0


# Large: the map, its uncertainty and the recording are what is inverted; four options say how, and where to go on.
def invert(
    velocity_mps: np.ndarray,
    uncertainty_mps: np.ndarray,
    recorded: np.ndarray,
    acquisition: Acquisition,
    iterations: int,
    on_iteration: OnIteration = lambda done, misfit, velocity_mps: None,
    prior: str = "blocky",
    resume_from: tuple[np.ndarray, int] | None = None,
) -> Refined:
    """Update a map until its modelled gather matches the recorded one to within the noise.

    Args:
        velocity_mps: First map ``(nz, nx)`` in m/s.
        uncertainty_mps: Its expected absolute error ``(nz, nx)`` in m/s.
        recorded: Gather ``(S, T, R)``. Traces of a dead receiver or a missing device are NaN or zero.
        acquisition: The survey.
        iterations: Total over all frequencies and competing shares.
        on_iteration: Called with the iterations done, the misfit relative to the recording's local strength, and the
            map. While shares compete, misfit and map are those before the competition.
        prior: "blocky" (layers and faults) or "smooth".
        resume_from: Map ``(nz, nx)`` and iterations done of an interrupted inversion, from ``on_iteration``. The shares
            compete again.

    Returns:
        The map with the lowest broadband misfit, its uncertainty, and what was done.

    Raises:
        ModellingError: The survey's waves cannot be modelled, or no trace is live.
        ValueError: There is no such prior.
    """
    if prior not in PRIORS:
        raise ValueError(f"prior: expected {' or '.join(PRIORS)}, got {prior!r}")
    a = acquisition
    start = np.asarray(velocity_mps, np.float64)
    recording = Recording.of(recorded, a)
    gather = _modelled(start, a)
    recording = recording.scaled_to(gather)
    run = _Run(a, recording, prior, on_iteration)
    first = run.compare(start, gather)
    now = first
    if resume_from:
        run.done = resume_from[1]
        now = run.model_and_compare(np.asarray(resume_from[0], np.float64))
    best = run.whole(first, now, iterations)
    uncertainty = np.asarray(uncertainty_mps, np.float64)
    if best.misfit < first.misfit:
        uncertainty = _posterior(best, recording, run.broadband, uncertainty, a)
    return Refined(
        velocity_mps=best.velocity.astype(np.float32),
        uncertainty_mps=uncertainty.astype(np.float32),
        iterations=run.done,
        modelled=run.modelled,
        objective=(first.misfit, best.misfit),
        misfit=(float(np.sqrt(2 * first.misfit)), float(np.sqrt(2 * best.misfit))),
        unit="of the recording",
        settings={
            "prior": prior,
            "stages": [asdict(stage) for stage in STAGES],
            "roughness_share": run.share,
            "regions": run.regions,
            "noise": recording.noise,
            "chi_squared": recording.chi_squared(best.gather),
            "amplitude": recording.amplitude,
            "dead_traces": int(np.sum(~recording.live.any(axis=1))),
        },
    )


@dataclass(frozen=True)
class _Found:
    """A map ``(nz, nx)``, its gather ``(S, T, R)`` and its misfit at all frequencies."""

    velocity: np.ndarray
    gather: np.ndarray
    misfit: float


@dataclass
class _Run:
    """Iterations of one inversion.

    Attributes:
        done: Iterations so far.
        share: Of the roughness before a stage's factor; None before the shares have competed.
        regions: Of the map at the latest fit of regions; None without one.
        modelled: Gathers modelled so far.
    """

    acquisition: Acquisition
    recording: Recording
    prior: str
    on_iteration: OnIteration
    done: int = 0
    share: float | None = None
    regions: int | None = None
    modelled: int = 1

    def __post_init__(self) -> None:
        a = self.acquisition
        self.broadband = RecordingMisfit(a, self.recording, Lowpass(a, None))
        self._bounds = (a.velocity_min_mps, a.velocity_max_mps)

    def compare(self, velocity: np.ndarray, gather: np.ndarray) -> _Found:
        """Compare a map's gather ``(S, T, R)`` with the recorded one at all frequencies."""
        return _Found(velocity, gather, self.broadband.value(gather))

    def model_and_compare(self, velocity: np.ndarray) -> _Found:
        """Model a map's gather and compare it."""
        return self.compare(velocity, self._model(velocity))

    def whole(self, first: _Found, now: _Found, iterations: int) -> _Found:
        """Run all stages from ``now``; return the map with the least misfit, which may be ``first``."""
        best = min(first, now, key=lambda found: found.misfit)
        trial = min(iterations // LEAST_TRIALS, TRIAL_ITERATIONS)
        trial = trial if trial >= LEAST_STAGE_ITERATIONS else 0
        trials = len(SHARES) * trial
        fitted = False
        for stage in STAGES:
            count = trials + round(stage.end * (iterations - trials)) - self.done
            if count < self._least(stage) or self.recording.chi_squared(now.gather) <= 1.0:
                continue
            if stage.layered:
                now = self._fit_regions(now, count)
            else:
                now = self.model_and_compare(self._descend_on(now, stage, count, trial))
            if fitted and self._is_given_up(now, best):
                now = best
            fitted = stage.layered
            best = min(best, now, key=lambda found: found.misfit)
        return best

    def _is_given_up(self, fitted: _Found, before: _Found) -> bool:
        """Return whether a map explains the recording clearly worse after its regions were fitted."""
        misfit = self.broadband
        return misfit.beyond_noise(fitted.misfit) > GIVEN_UP * excess(before.misfit, misfit.noise)

    def _least(self, stage: Stage) -> float:
        """Return the fewest iterations for which a stage begins."""
        if stage.layered:
            return LEAST_LAYERED_ITERATIONS if self.prior == "blocky" else np.inf
        return 1 if stage.cut is None else LEAST_STAGE_ITERATIONS

    def _fit_regions(self, start: _Found, iterations: int) -> _Found:
        """Fit the regions of a map for up to so many iterations; return the map, or the start if a few steps take more.

        While the misfit is larger than that of the start, callers hear of the start.
        """
        began, modelled = self.done, self.modelled
        fit = LayeredFit(start.velocity, self._bounds, self.broadband, self._model)

        def spent(gathers: int = 0) -> int:
            return ceil((self.modelled - modelled + gathers) * GATHER_ITERATIONS)

        if fit.regions < 2 or spent(LEAST_STEPS * len(fit.parameters)) > iterations:
            return start
        self.regions, goes_on = fit.regions, True
        while goes_on and spent(len(fit.parameters)) <= iterations:
            goes_on = fit.step() and self.recording.chi_squared(fit.now.gather) > 1.0
            self.done = began + min(iterations, spent())
            shown = fit.now if fit.now.misfit < start.misfit else start
            self.on_iteration(self.done, float(np.sqrt(2 * shown.misfit)), shown.velocity)
        return _Found(fit.now.velocity, fit.now.gather, fit.now.misfit)

    def _model(self, velocity: np.ndarray) -> np.ndarray:
        self.modelled += 1
        return _modelled(velocity, self.acquisition)

    def _descend_on(self, start: _Found, stage: Stage, iterations: int, trial: int) -> np.ndarray:
        """Run up to ``iterations`` cell by cell and return the map.

        Args:
            start: Where to begin.
            stage: Its low-pass and roughness.
            iterations: Of the stage, with those of the competing shares.
            trial: Iterations of each share that competes; 0 for no competition.
        """
        a = self.acquisition
        lowpass = Lowpass(a, None if stage.cut is None else stage.cut * a.peak_frequency_hz)
        misfit = RecordingMisfit(a, self.recording, lowpass)
        roughness = Roughness(start.velocity.shape, PRIORS[self.prior])
        descent = Descent(misfit, misfit.noise, roughness, _units(a), self._bounds)
        point, end = Point.at(start.velocity, misfit), self.done + iterations
        self.modelled += 1
        if self.share is None and 0 < len(SHARES) * trial <= iterations:
            tried = [
                self._descend(descent, misfit, point, stage.factor * share, trial, point) for share in SHARES
            ]
            best = min(range(len(SHARES)), key=lambda n: tried[n].misfit)
            point, self.share = tried[best], SHARES[best]
        share = SHARES[-1] if self.share is None else self.share
        return self._descend(descent, misfit, point, stage.factor * share, end - self.done).velocity

    def _descend(
        self,
        descent: Descent,
        misfit: RecordingMisfit,
        point: Point,
        share: float,
        iterations: int,
        told: Point | None = None,
    ) -> Point:
        """Run up to ``iterations`` from a point; ``told`` is the point that callers hear of instead."""
        for _ in range(iterations):
            found = descent.step(point, share)
            if found is None:
                break
            point = found
            self.done += 1
            self.modelled += 1
            shown = told or point
            self.on_iteration(self.done, float(np.sqrt(2 * shown.misfit)), shown.velocity)
            if misfit.chi_squared <= 1.0:
                break
        return point


def _posterior(
    best: _Found,
    recording: Recording,
    misfit: RecordingMisfit,
    uncertainty_mps: np.ndarray,
    a: Acquisition,
) -> np.ndarray:
    """Return the expected absolute error ``(nz, nx)`` in m/s: the first map's, reduced by the Gauss-Newton diagonal.

    The curvature knows the residual, not what the prior and a local minimum leave. They leave a misfit beyond the
    noise, and an error in proportion to it (``UNEXPLAINED_MPS``), distributed as the first map's.

    The diagonal is estimated with random probes (Bekas et al. 2007, Applied Numerical Mathematics 57). Residuals are
    correlated over half a period, so the samples of half a period count as one.
    """
    rng, weights = np.random.default_rng(0), misfit.weights
    curvature = np.zeros_like(best.velocity)
    for _ in range(PROBES):
        probe = weights * rng.choice((-1.0, 1.0), size=weights.shape)
        _, back = misfit_and_gradient(best.velocity, a, _residual_of(probe))
        curvature += np.square(back) / PROBES
    for axis in (0, 1):
        curvature = gaussian_filter1d(curvature, PROBE_CELLS, axis=axis, mode="nearest")
    left = np.sum(np.square(weights * (best.gather - recording.gather))) / recording.live.sum()
    together = max(1.0, 0.5 / (a.peak_frequency_hz * a.dt_s))
    # Of a normal distribution the expected absolute error squared is 2 / pi of the variance.
    known = 1.0 / np.sqrt(1.0 / np.square(uncertainty_mps) + np.pi / 2 * curvature / (together * left))
    beyond_noise = np.sqrt(2 * misfit.beyond_noise(best.misfit))
    unexplained = UNEXPLAINED_MPS * beyond_noise / uncertainty_mps.mean()
    return np.minimum(np.hypot(known, unexplained * uncertainty_mps), uncertainty_mps)


def _residual_of(probe: np.ndarray) -> Callable[[int, np.ndarray], tuple[float, np.ndarray]]:
    """Return a misfit whose residual is ``probe (S, T, R)``, whatever was recorded."""
    return lambda source, record: (0.0, probe[source])


def _modelled(velocity: np.ndarray, a: Acquisition) -> np.ndarray:
    return model_gathers(velocity[None, None].astype(np.float32), a)[0].astype(np.float64)


def _units(a: Acquisition) -> np.ndarray:
    """Return the change of a cell in m/s that counts as one, ``(nz, nx)``.

    Border cells represent all cells of their padding.
    """
    unit = np.repeat(np.linspace(*UNIT_MPS, a.n_depth)[:, None], a.n_width, axis=1)
    unit[0] *= 0.3
    unit[:, [0, -1]] *= 0.5
    return unit
