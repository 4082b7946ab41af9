"""Apply field errors of fixed strength to decimated training gathers."""

from __future__ import annotations

from typing import Any

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
# Share of augmented samples with a sparse spread: only one stretch of the line records, or only every second, third or
# fourth receiver.
SPARSE_SHARE = 0.2
# Shortest and longest recording stretch, relative to the line.
STRETCH_SHARE = (0.2, 0.75)


def augment_field(
    gathers: np.ndarray, acquisition: Acquisition, sample_s: float, rng: np.random.Generator
) -> np.ndarray:
    """Apply dead and reversed receivers, sparse spreads, gain and clock errors to gathers ``(n, T', R, S)`` float32.

    A dead receiver is silent for all sources. A device's clock error is the same for all its receivers and sources.
    ``sample_s`` is the sample interval in seconds.
    """
    n, n_time, n_receivers, _ = gathers.shape
    gains = np.exp(GAIN_SPREAD * rng.standard_normal((n, n_receivers)))
    gains[rng.random((n, n_receivers)) < REVERSED_SHARE] *= -1.0
    gains[rng.random((n, n_receivers)) < DEAD_SHARE] = 0.0
    gains[beyond_sparse_spread(rng.random((n, 4)), n_receivers)] = 0.0
    late_s = np.zeros((n, n_receivers))
    for receivers in acquisition.device_receivers:
        late_s[:, list(receivers)] = JITTER_S * rng.standard_normal((n, 1))
    # Sub-sample shift in the frequency domain; padding prevents wrap-around.
    spectrum = np.fft.rfft(gathers, 2 * n_time, axis=1)
    frequency_hz = np.fft.rfftfreq(2 * n_time, sample_s)
    turn = np.exp(-2j * np.pi * frequency_hz[None, :, None] * late_s[:, None])
    shifted = np.fft.irfft(spectrum * turn[..., None], 2 * n_time, axis=1)[:, :n_time]
    return (shifted * gains[:, None, :, None]).astype(np.float32)


def beyond_sparse_spread(draws: Any, n_receivers: int) -> Any:
    """Return which receivers are silent because a sample's spread is sparse, ``(n, n_receivers)`` bool.

    ``draws (n, 4)`` are uniform in 0..1: whether the spread is sparse, which kind, its size and its place. They may be
    NumPy's or JAX's; the result is the same.
    """
    which, kind, size, place = (draws[:, i : i + 1] for i in range(4))
    receivers = np.arange(n_receivers)[None]
    length = n_receivers * (STRETCH_SHARE[0] + (STRETCH_SHARE[1] - STRETCH_SHARE[0]) * size)
    start = place * (n_receivers - length)
    outside = (receivers < start) | (receivers >= start + length)
    step = 2 + 3 * size // 1
    between = receivers % step != place * step // 1
    return (which < SPARSE_SHARE) & ((kind < 0.5) & outside | (kind >= 0.5) & between)
