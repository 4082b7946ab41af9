"""Apply field errors of fixed strength to decimated training gathers."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition

# Share of training samples with field errors; the rest stays as modelled.
AUGMENTED_SHARE = 0.25
# Per receiver of an augmented sample: shares of dead and of reversed receivers, standard deviation of the log gain.
DEAD_SHARE = 0.03
REVERSED_SHARE = 0.01
GAIN_SPREAD = 0.1
# Standard deviation of each device's clock error.
JITTER_S = 0.002


def augment_field(
    gathers: np.ndarray, acquisition: Acquisition, sample_s: float, rng: np.random.Generator
) -> np.ndarray:
    """Apply dead and reversed receivers, gain errors and clock errors to gathers ``(n, T', R, S)`` float32.

    A dead receiver is silent for all sources. A device's clock error is the same for all its receivers and sources.
    ``sample_s`` is the sample interval in seconds.
    """
    n, n_time, n_receivers, _ = gathers.shape
    gains = np.exp(GAIN_SPREAD * rng.standard_normal((n, n_receivers)))
    gains[rng.random((n, n_receivers)) < REVERSED_SHARE] *= -1.0
    gains[rng.random((n, n_receivers)) < DEAD_SHARE] = 0.0
    late_s = np.zeros((n, n_receivers))
    for receivers in acquisition.device_receivers:
        late_s[:, list(receivers)] = JITTER_S * rng.standard_normal((n, 1))
    # Sub-sample shift in the frequency domain; padding prevents wrap-around.
    spectrum = np.fft.rfft(gathers, 2 * n_time, axis=1)
    frequency_hz = np.fft.rfftfreq(2 * n_time, sample_s)
    turn = np.exp(-2j * np.pi * frequency_hz[None, :, None] * late_s[:, None])
    shifted = np.fft.irfft(spectrum * turn[..., None], 2 * n_time, axis=1)[:, :n_time]
    return (shifted * gains[:, None, :, None]).astype(np.float32)
