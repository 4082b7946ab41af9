"""A recorded gather as an inversion uses it: dead traces, noise, amplitude, and the misfit of a map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient
from physics.errors import ModellingError

# Floor of the local strength, relative to its maximum; it limits the amplification of weak parts.
WEIGHT_FLOOR = 1e-3
# Periods of the wavelet, and traces, over which the strength of the recording is averaged.
STRENGTH_PERIODS, STRENGTH_TRACES = 0.6, 3.0
# Least noise, relative to the recording's root mean square: the accuracy of float32 modelling.
LEAST_NOISE = 2e-5
# Amplitude errors of the wavelet beyond this are corrected. An imperfect shallow map causes errors below it.
AMPLITUDE_TOLERANCE = 0.05


@dataclass
class Recording:
    """A recorded gather as the inversion uses it.

    Attributes:
        gather: ``(S, T, R)`` float64 without its dead traces, which are zero here.
        live: 1 where a sample counts, 0 in dead traces and where a device is missing; ``(S, T, R)``.
        noise: Standard deviation of the noise, or of the modelling's inaccuracy if that is larger.
        amplitude: Of the wavelet, relative to the survey's; the gather is divided by it.
        measured_noise: Standard deviation before the first arrivals.
    """

    gather: np.ndarray
    live: np.ndarray
    noise: float
    amplitude: float = 1.0
    measured_noise: float = 0.0

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
        return cls(gather, live, max(noise, LEAST_NOISE * strength), measured_noise=noise)

    def scaled_to(self, modelled: np.ndarray) -> Recording:
        """Return the recording scaled to a wavelet of unit amplitude, by the energy of a modelled gather."""
        energy = np.sum(np.square(modelled) * self.live)
        amplitude = float(np.sqrt(np.sum(np.square(self.gather)) / energy)) if energy else 1.0
        if amplitude == 0.0 or abs(amplitude - 1.0) <= AMPLITUDE_TOLERANCE:
            return self
        return replace(
            self,
            gather=self.gather / amplitude,
            noise=self.noise / amplitude,
            amplitude=amplitude,
            measured_noise=self.measured_noise / amplitude,
        )

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
        # Share of the power of white noise that passes.
        self.power = 1.0 if self._gain is None else float(np.mean(np.square(self._gain)))

    def __call__(self, gather: np.ndarray) -> np.ndarray:
        if self._gain is None:
            return gather
        spectrum = np.fft.rfft(gather, self._n, axis=1) * self._gain[None, :, None]
        return np.fft.irfft(spectrum, self._n, axis=1)[:, : gather.shape[1]]


class RecordingMisfit:
    """Misfit of a map and its derivative per m/s: the mean of |W lowpass(r)|^2 / 2, see ``waveform.py``.

    Attributes:
        weights: ``W``, ``(S, T, R)``.
        noise: The misfit that the measured noise alone leaves, if it is white.
        chi_squared: Mean squared residual of the latest map, in units of the noise.
    """

    def __init__(self, acquisition: Acquisition, recording: Recording, lowpass: Lowpass) -> None:
        self._acquisition = acquisition
        self._recording = recording
        self._lowpass = lowpass
        self.weights = recording.weights(lowpass)
        left = np.square(recording.measured_noise) * lowpass.power
        self.noise = float(left * np.sum(np.square(self.weights)) / (2 * recording.live.sum()))
        self.chi_squared = np.inf

    def residual(self, gather: np.ndarray) -> np.ndarray:
        """Return W lowpass(r) of a modelled gather, ``(S, T, R)``."""
        return self.weights * self._lowpass(gather - self._recording.gather)

    def value(self, gather: np.ndarray) -> float:
        """Return the misfit of a modelled gather ``(S, T, R)``."""
        residual = self.residual(gather)
        return float(np.sum(np.square(residual)) / (2 * self._recording.live.sum()))

    def beyond_noise(self, value: float) -> float:
        """Return what is left of a misfit without the part that the noise leaves, at least zero."""
        return max(value - self.noise, 0.0)

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


def _before_arrivals(a: Acquisition) -> np.ndarray:
    """Return a mask of samples ``(S, T, R)`` before any possible arrival within the survey's velocity bounds."""
    offsets_m = np.abs(np.subtract.outer(a.source_cells, a.receiver_cells)) * a.dx_m
    times_s = np.arange(a.n_time) * a.dt_s
    return times_s[None, :, None] < (0.8 * offsets_m / a.velocity_max_mps)[:, None, :]
