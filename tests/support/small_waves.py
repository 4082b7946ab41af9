"""A survey of a few cells in which a wave comes back from the ground within its short record."""

import numpy as np

from physics.acquisition import Acquisition

# As many samples, receivers and devices as the encoder of tiny.py takes.
WAVES = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 14,
        "n_width": 16,
        "dx_m": 20.0,
        "dt_s": 0.002,
        "n_time": 100,
        "peak_frequency_hz": 20.0,
        "source_cells": [2, 13],
        "receiver_cells": [0, 3, 6, 9, 12, 15],
        "device_receivers": [[0, 1, 2], [3, 4, 5]],
    }
)


def earth(contrast_mps: float) -> np.ndarray:
    """A map ``(nz, nx)`` in m/s: even but for a body ``contrast_mps`` faster in its middle."""
    velocity_mps = np.full((WAVES.n_depth, WAVES.n_width), 2600.0, np.float32)
    velocity_mps[5:9, 5:11] += contrast_mps
    return velocity_mps


def uncertainty() -> np.ndarray:
    """m/s ``(nz, nx)``: large where the body is or may be."""
    uncertainty_mps = np.full((WAVES.n_depth, WAVES.n_width), 20.0, np.float32)
    uncertainty_mps[4:10, 4:12] = 200.0
    return uncertainty_mps
