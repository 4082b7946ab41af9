"""What the engines that follow the benchmark's scheme share: its sponge, and what need not be computed."""

from __future__ import annotations

import numpy as np

# Cells of damping on every side of the map.
PAD_CELLS = 120
# Amplitude that a wave keeps after crossing the sponge, which sets its strength.
_SPONGE_RESIDUE = 1e-7
# Cells by which the computed part of the grid exceeds the reach of the fastest wave: numerical precursors.
MARGIN_CELLS = 12


def sponge_per_mps(dx_m: float) -> float:
    """Damping at the sponge's outer edge, 1/s, for each m/s of the map's slowest cell."""
    return float(3.0 * np.log(1.0 / _SPONGE_RESIDUE) / (2.0 * (PAD_CELLS - 1) * dx_m))
