"""Full-waveform inversion of a recorded gather, starting from a predicted map.

Let r be the difference between the modelled and the recorded gather, and W the inverse of the recording's local
strength (and of its noise). The objective is

    mean of |W lowpass(r)|^2 / 2 + TOTAL_VARIATION_SHARE * (its first value) * (total variation) / (its first value)

It is minimised by SciPy's L-BFGS-B, first for the lowest frequencies, then for all (multiscale inversion; Bunks et al.
1995, Geophysics 60).

The gradient is the exact adjoint of the benchmark's scheme (docs/decisions/0022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize

from models.inversion.refinement import OnIteration, Refined, smoothing, total_variation
from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient
from physics.errors import ModellingError
from physics.modelling import model_gathers

PRIORS = ("blocky", "smooth")
# Low-pass of each stage in units of the wavelet's peak frequency (None: all frequencies), and the share of all
# iterations that are done at its end.
STAGES: tuple[tuple[float | None, float], ...] = ((0.27, 0.15), (0.47, 0.3), (None, 1.0))
# Stages with fewer iterations are skipped, because they would not begin to converge.
LEAST_STAGE_ITERATIONS = 5
# Iterations between two weightings of the roughness, so that its weight falls with the misfit.
REWEIGH_ITERATIONS = 150
# Weight of the roughness at the start of these iterations, as a share of the misfit at that point.
TOTAL_VARIATION_SHARE = 0.3
# The roughness at that point counts as at least this much a cell, in m/s, so that a uniform map may get layers.
LEAST_CONTRAST_MPS = 5.0
# Contrasts below this value, m/s, are penalised quadratically.
CONTRAST_MPS = 20.0
# Correlation length of the change under the smooth prior, in cells.
SMOOTH_CELLS = 1.5
# Unit of change, m/s, at the top and at the bottom of the map: weaker waves reach deep cells.
UNIT_MPS = (100.0, 450.0)
# Floor of the local strength, relative to its maximum; it limits the amplification of weak parts.
WEIGHT_FLOOR = 1e-3
# Periods of the wavelet, and traces, over which the strength of the recording is averaged.
STRENGTH_PERIODS, STRENGTH_TRACES = 0.6, 3.0
# Least noise, relative to the recording's root mean square: the accuracy of float32 modelling.
LEAST_NOISE = 2e-5
# Amplitude errors of the wavelet beyond this are corrected. An imperfect shallow map causes errors below it.
AMPLITUDE_TOLERANCE = 0.05
# Share of the first map's standard deviation that an inversion leaves at least: about the share of the error that it
# leaves (docs/results/definitive.md).
UNEXPLAINED_SHARE = 0.6
# Random probes for the diagonal of the Gauss-Newton matrix, and the smoothing of the diagonal in cells.
PROBES, PROBE_CELLS = 4, 2.0


@dataclass
class Recording:
    """A recorded gather as the inversion uses it.

    Attributes:
        gather: ``(S, T, R)`` float64 without its dead traces, which are zero here.
        live: 1 where a sample counts, 0 in dead traces and where a device is missing; ``(S, T, R)``.
        noise: Standard deviation of the noise.
        amplitude: Of the wavelet, relative to the survey's; the gather is divided by it.
    """

    gather: np.ndarray
    live: np.ndarray
    noise: float
    amplitude: float = 1.0

    @classmethod
    def of(cls, recorded: np.ndarray, acquisition: Acquisition) -> Recording:
        """Find the noise before the first arrivals and the dead traces (not finite or all zero).

        Raises:
            ModellingError: Every trace is dead.
        """
        gather = np.asarray(recorded, np.float64)
        alive = np.isfinite(gather).all(axis=1, keepdims=True)
        gather = np.where(alive, gather, 0.0)
        alive &= (gather != 0.0).any(axis=1, keepdims=True)
        if not alive.any():
            raise ModellingError("inversion: expected a recording with at least one live trace, got none")
        live = np.repeat(alive, gather.shape[1], axis=1).astype(np.float64)
        # Some of the benchmark's files end with a row of zeros.
        live[:, -1] *= (gather[:, -1] != 0.0).any()
        strength = np.sqrt(np.sum(np.square(gather)) / max(live.sum(), 1.0))
        quiet = gather[_before_arrivals(acquisition) & (live > 0)]
        noise = float(np.sqrt(np.mean(np.square(quiet)))) if quiet.size >= 50 else 0.0
        return cls(gather, live, max(noise, LEAST_NOISE * strength))

    def scaled_to(self, modelled: np.ndarray) -> Recording:
        """Return the recording scaled to a wavelet of unit amplitude, by the energy of a modelled gather."""
        energy = np.sum(np.square(modelled) * self.live)
        amplitude = float(np.sqrt(np.sum(np.square(self.gather)) / energy)) if energy else 1.0
        if amplitude == 0.0 or abs(amplitude - 1.0) <= AMPLITUDE_TOLERANCE:
            return self
        return Recording(self.gather / amplitude, self.live, self.noise / amplitude, amplitude)

    def weights(self, lowpass: Lowpass) -> np.ndarray:
        """Return the inverse local strength of the low-passed recording, ``(S, T, R)``; it amplifies late arrivals."""
        energy = np.square(lowpass(self.gather))
        energy = gaussian_filter1d(energy, lowpass.period_samples * STRENGTH_PERIODS, axis=1, mode="nearest")
        strength = np.sqrt(gaussian_filter1d(energy, STRENGTH_TRACES, axis=2, mode="nearest"))
        return self.live / (strength + WEIGHT_FLOOR * strength.max() + self.noise)

    def chi_squared(self, modelled: np.ndarray) -> float:
        """Return the mean squared residual in units of the noise."""
        off = np.square((modelled - self.gather) / self.noise)
        return float(np.sum(off * self.live) / self.live.sum())


class Lowpass:
    """Zero-phase Gaussian low-pass along time, which is its own adjoint. ``cut_hz`` None passes everything."""

    def __init__(self, acquisition: Acquisition, cut_hz: float | None) -> None:
        a = acquisition
        self.period_samples = 1.0 / (a.peak_frequency_hz * a.dt_s)
        self._n = 2 * a.n_time
        frequency_hz = np.fft.rfftfreq(self._n, a.dt_s)
        self._gain = None if cut_hz is None else np.exp(-np.square(frequency_hz / cut_hz) / 2)

    def __call__(self, gather: np.ndarray) -> np.ndarray:
        if self._gain is None:
            return gather
        spectrum = np.fft.rfft(gather, self._n, axis=1) * self._gain[None, :, None]
        return np.fft.irfft(spectrum, self._n, axis=1)[:, : gather.shape[1]]


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
        uncertainty_mps: Its standard deviation ``(nz, nx)`` in m/s.
        recorded: Gather ``(S, T, R)``. Traces of a dead receiver or a missing device are NaN or zero.
        acquisition: The survey.
        iterations: Total over all frequencies.
        on_iteration: Called with the iterations done, the misfit relative to the recording's local strength, and the
            map.
        prior: "blocky" (total variation) or "smooth" (changes correlated over ``SMOOTH_CELLS``).
        resume_from: Map ``(nz, nx)`` and iterations done of an interrupted inversion, from ``on_iteration``.

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
    broadband = _Misfit(a, recording, Lowpass(a, None))
    size = broadband.value
    run = _Run(a, recording, prior, on_iteration, modelled=1)
    first = best = (size(gather), start, gather)
    now, gather_now = start, gather
    if resume_from:
        now, run.iterations = np.asarray(resume_from[0], np.float64), resume_from[1]
        gather_now = _modelled(now, a)
        if size(gather_now) < best[0]:
            best = (size(gather_now), now, gather_now)
    for fraction, end in STAGES:
        lowpass = Lowpass(a, None if fraction is None else fraction * a.peak_frequency_hz)
        least = 1 if fraction is None else LEAST_STAGE_ITERATIONS
        while round(end * iterations) - run.iterations >= least and recording.chi_squared(gather_now) > 1.0:
            count, done = min(round(end * iterations) - run.iterations, REWEIGH_ITERATIONS), run.iterations
            now = run.stage(now, gather_now, lowpass, count)
            gather_now = _modelled(now, a)
            run.modelled += 1
            if size(gather_now) < best[0]:
                best = (size(gather_now), now, gather_now)
            if run.iterations == done:
                break
    gained = best[0] < first[0]
    uncertainty = np.asarray(uncertainty_mps, np.float64)
    if gained:
        uncertainty = _posterior(best[1], best[2], recording, broadband.weights, uncertainty, a)
    return Refined(
        velocity_mps=best[1].astype(np.float32),
        uncertainty_mps=uncertainty.astype(np.float32),
        iterations=run.iterations,
        modelled=run.modelled,
        objective=(first[0], best[0]),
        misfit=(float(np.sqrt(2 * first[0])), float(np.sqrt(2 * best[0]))),
        unit="of the recording",
        settings={
            "prior": prior,
            "stages": STAGES,
            "total_variation_share": TOTAL_VARIATION_SHARE,
            "noise": recording.noise,
            "chi_squared": recording.chi_squared(best[2]),
            "amplitude": recording.amplitude,
            "dead_traces": int(np.sum(~recording.live.any(axis=1))),
        },
    )


@dataclass
class _Run:
    """Iterations of one inversion."""

    acquisition: Acquisition
    recording: Recording
    prior: str
    on_iteration: OnIteration
    modelled: int = 0
    iterations: int = 0

    def stage(self, start: np.ndarray, gather: np.ndarray, lowpass: Lowpass, iterations: int) -> np.ndarray:
        """Run up to ``iterations`` from ``start`` with its gather; return the map found."""
        a, unit = self.acquisition, _units(self.acquisition)
        along_z, along_x = (
            smoothing(n, SMOOTH_CELLS) if self.prior == "smooth" else np.eye(n) for n in start.shape
        )
        misfit = _Misfit(a, self.recording, lowpass)
        roughness_now = total_variation(start, CONTRAST_MPS)[0]
        value_now = misfit.value(gather)
        roughness_weight = 0.0
        if self.prior == "blocky":
            roughness_weight = (
                TOTAL_VARIATION_SHARE * value_now / max(roughness_now, LEAST_CONTRAST_MPS * start.size)
            )
        latest = [value_now]

        def to_map(x: np.ndarray) -> np.ndarray:
            return start + unit * (along_z @ x.reshape(start.shape) @ along_x.T)

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            self.modelled += 1
            free = to_map(x)
            velocity = np.clip(free, a.velocity_min_mps, a.velocity_max_mps)
            value, gradient = misfit(velocity)
            latest[0] = value
            if roughness_weight:
                roughness, by_map = total_variation(velocity, CONTRAST_MPS)
                value += roughness_weight * roughness
                gradient = gradient + roughness_weight * by_map
            gradient = np.where(velocity == free, gradient, 0.0)
            by_x = along_z.T @ (unit * gradient) @ along_x
            # Scaled by the stage's first value, because SciPy's tolerances are absolute near zero.
            return value / value_now, by_x.ravel() / value_now

        def after_iteration(x: np.ndarray) -> None:
            self.iterations += 1
            velocity = np.clip(to_map(x), a.velocity_min_mps, a.velocity_max_mps)
            self.on_iteration(self.iterations, float(np.sqrt(2 * latest[0])), velocity)
            if misfit.chi_squared <= 1.0:
                raise StopIteration

        found = minimize(
            objective,
            np.zeros(start.size),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options={"maxiter": iterations, "maxcor": 20, "maxls": 10, "ftol": 1e-9, "gtol": 1e-12},
        )
        return np.clip(to_map(found.x), a.velocity_min_mps, a.velocity_max_mps)


class _Misfit:
    """Value and derivative per m/s of a map's data misfit; ``chi_squared`` is that of the latest map."""

    def __init__(self, acquisition: Acquisition, recording: Recording, lowpass: Lowpass) -> None:
        self._acquisition = acquisition
        self._recording = recording
        self._lowpass = lowpass
        self.weights = recording.weights(lowpass)
        self.chi_squared = np.inf

    def value(self, gather: np.ndarray) -> float:
        """Return the misfit of a modelled gather ``(S, T, R)``."""
        residual = self.weights * self._lowpass(gather - self._recording.gather)
        return float(np.sum(np.square(residual)) / (2 * self._recording.live.sum()))

    def __call__(self, velocity: np.ndarray) -> tuple[float, np.ndarray]:
        recording, count = self._recording, self._recording.live.sum()
        gather = np.zeros(recording.gather.shape)

        def one(source: int, record: np.ndarray) -> tuple[float, np.ndarray]:
            gather[source] = record
            weights = self.weights[source]
            residual = weights * self._lowpass((record - recording.gather[source])[None])[0]
            value = float(np.sum(np.square(residual)) / (2 * count))
            return value, self._lowpass((weights * residual)[None])[0] / count

        found = misfit_and_gradient(velocity, self._acquisition, one)
        self.chi_squared = recording.chi_squared(gather)
        return found


def _posterior(
    velocity: np.ndarray,
    gather: np.ndarray,
    recording: Recording,
    weights: np.ndarray,
    uncertainty_mps: np.ndarray,
    a: Acquisition,
) -> np.ndarray:
    """Return the standard deviation ``(nz, nx)`` in m/s: the first map's, reduced by the Gauss-Newton diagonal.

    The curvature knows the residual, not what the prior and a local minimum leave, so ``UNEXPLAINED_SHARE`` remains.

    The diagonal is estimated with random probes (Bekas et al. 2007, Applied Numerical Mathematics 57). Residuals are
    correlated over half a period, so the samples of half a period count as one.
    """
    rng = np.random.default_rng(0)
    curvature = np.zeros_like(velocity)
    for _ in range(PROBES):
        probe = weights * rng.choice((-1.0, 1.0), size=weights.shape)
        _, back = misfit_and_gradient(velocity, a, _residual_of(probe))
        curvature += np.square(back) / PROBES
    for axis in (0, 1):
        curvature = gaussian_filter1d(curvature, PROBE_CELLS, axis=axis, mode="nearest")
    left = np.sum(np.square(weights * (gather - recording.gather))) / recording.live.sum()
    together = max(1.0, 0.5 / (a.peak_frequency_hz * a.dt_s))
    known = 1.0 / np.sqrt(1.0 / np.square(uncertainty_mps) + curvature / (together * left))
    return np.minimum(np.hypot(known, UNEXPLAINED_SHARE * uncertainty_mps), uncertainty_mps)


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


def _before_arrivals(a: Acquisition) -> np.ndarray:
    """Return a mask of samples ``(S, T, R)`` before any possible arrival within the survey's velocity bounds."""
    offsets_m = np.abs(np.subtract.outer(a.source_cells, a.receiver_cells)) * a.dx_m
    times_s = np.arange(a.n_time) * a.dt_s
    return times_s[None, :, None] < (0.8 * offsets_m / a.velocity_max_mps)[:, None, :]
