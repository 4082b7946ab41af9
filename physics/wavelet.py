"""The source wavelet of OpenFWI's forward model."""

from __future__ import annotations

import numpy as np

from physics.acquisition import Acquisition

# 2.2 periods, rounded to an odd number of samples: 147 with the peak at sample 73, for 15 Hz at 1 ms.
_PERIODS = 2.2


def ricker(acquisition: Acquisition) -> np.ndarray:
    """Return a Ricker wavelet of unit amplitude, ``(n_time,)`` float32: (1 - 2b) exp(-b), zero after its support."""
    dt_s, f_hz = acquisition.dt_s, acquisition.peak_frequency_hz
    n = 2 * int(_PERIODS / f_hz / dt_s / 2) + 1
    b = ((n // 2 - np.arange(n)) * f_hz * dt_s * np.pi) ** 2
    wavelet = np.zeros(acquisition.n_time)
    n = min(n, acquisition.n_time)
    wavelet[:n] = ((1 - 2 * b) * np.exp(-b))[:n]
    return wavelet.astype(np.float32)
