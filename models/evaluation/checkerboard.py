"""Measure a pattern in predicted maps that repeats with the decoder's patches."""

from __future__ import annotations

import numpy as np


def pattern_mps(maps_mps: np.ndarray, axis: int, waves: int) -> float:
    """Return the root mean square of a pattern with so many waves along an axis, in the median line of all maps.

    It is the power of three neighbouring wavenumbers beyond the mean of the four around them. The median passes over
    lines in which edges hide a pattern.

    Args:
        maps_mps: ``(n, nz, nx)``, in m/s.
        axis: 1 for z, 2 for x.
        waves: Whole waves along the axis.
    """
    n = maps_mps.shape[axis]
    taper = np.hanning(n)
    taper /= np.sqrt(np.mean(np.square(taper)))
    lines = np.moveaxis(maps_mps, axis, -1)
    spectrum = np.fft.rfft((lines - lines.mean(axis=-1, keepdims=True)) * taper)
    power = 2 * np.square(np.abs(spectrum)) / n**2
    at = power[..., waves - 1 : waves + 2].sum(axis=-1)
    beside = power[..., [waves - 3, waves - 2, waves + 2, waves + 3]].mean(axis=-1)
    return float(np.sqrt(max(np.median(at - 3 * beside), 0.0)))
