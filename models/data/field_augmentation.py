"""What goes wrong in the field, at stated strengths, on thinned training gathers."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition

# Of the samples in training, so many have faults; the rest is as modelled.
FAULTY_SHARE = 0.25
# Of the receivers of a faulty sample: silent, of wrong polarity, and the spread of the gain's logarithm.
DEAD_SHARE = 0.03
REVERSED_SHARE = 0.01
GAIN_SPREAD = 0.1
# Standard deviation of each device's clock.
JITTER_S = 0.002


def add_faults(
    gathers: np.ndarray, acquisition: Acquisition, sample_s: float, rng: np.random.Generator
) -> np.ndarray:
    """``gathers (n, T', R, S)`` float32 with dead and reversed receivers, gain errors and jittered clocks.

    ``sample_s`` is the time between samples. A dead receiver is silent for all sources; a device's clock is
    wrong by the same time for all its receivers and sources.
    """
    n, n_time, n_receivers, _ = gathers.shape
    gains = np.exp(GAIN_SPREAD * rng.standard_normal((n, n_receivers)))
    gains[rng.random((n, n_receivers)) < REVERSED_SHARE] *= -1.0
    gains[rng.random((n, n_receivers)) < DEAD_SHARE] = 0.0
    late_s = np.zeros((n, n_receivers))
    for receivers in acquisition.device_receivers:
        late_s[:, list(receivers)] = JITTER_S * rng.standard_normal((n, 1))
    # Shifted by less than a sample in the frequency domain; the record is padded so that its end does not
    # come round to its beginning.
    spectrum = np.fft.rfft(gathers, 2 * n_time, axis=1)
    frequency_hz = np.fft.rfftfreq(2 * n_time, sample_s)
    turn = np.exp(-2j * np.pi * frequency_hz[None, :, None] * late_s[:, None])
    shifted = np.fft.irfft(spectrum * turn[..., None], 2 * n_time, axis=1)[:, :n_time]
    return (shifted * gains[:, None, :, None]).astype(np.float32)
