"""Shared parts of the engines that follow the benchmark's scheme: the sponge and the margin of the computed grid."""

from __future__ import annotations

import numpy as np

# Damped cells on every side of the map.
PAD_CELLS = 120
# Amplitude that remains after crossing the sponge; it sets the damping.
_SPONGE_RESIDUE = 1e-7
# Margin in cells around the reach of the fastest wave, for numerical precursors.
MARGIN_CELLS = 12


def sponge_per_mps(dx_m: float) -> float:
    """Return the damping at the sponge's outer edge in 1/s, per m/s of the map's slowest cell."""
    return float(3.0 * np.log(1.0 / _SPONGE_RESIDUE) / (2.0 * (PAD_CELLS - 1) * dx_m))
