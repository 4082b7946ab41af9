"""Folds: smooth curves across the map, as cubic splines through nodes about ten cells apart."""

from __future__ import annotations

import numpy as np

# Nodes of CurveVel's folds in cells, fitted to the benchmark's interfaces (0.5 cells rms, rounding is 0.3).
# The first stands outside the map: the left part is smoother than the right.
_NODES = np.array([-18.0, 14.8, 25.7, 35.2, 45.4, 54.1, 67.6])
# Spread of the fold at each node, and how far neighbours alternate (first-order correlation).
_SPREAD = np.array([1.1, 0.62, 0.73, 0.99, 0.92, 1.21, 1.51])
_ALTERNATION = np.array([-0.1, -0.15, -0.2, -0.65, -0.6, -0.8])


def spline_basis(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Evaluate the clamped cubic spline through ``nodes`` at ``x``: ``(len(x), len(nodes))`` weights of node values.

    Clamped: the slope is zero at the first and last node.
    """
    n = len(nodes)
    h = np.diff(nodes)
    # Slopes m at the nodes solve a tridiagonal system A m = B y.
    a, b = np.eye(n), np.zeros((n, n))
    for i in range(1, n - 1):
        a[i, i - 1 : i + 2] = 1 / h[i - 1], 2 / h[i - 1] + 2 / h[i], 1 / h[i]
        b[i, i - 1 : i + 2] = -3 / h[i - 1] ** 2, 3 / h[i - 1] ** 2 - 3 / h[i] ** 2, 3 / h[i] ** 2
    slopes = np.linalg.solve(a, b)
    k = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, n - 2)
    t = ((x - nodes[k]) / h[k])[:, None]
    values = np.eye(n)
    width = h[k][:, None]
    return (
        (2 * t**3 - 3 * t**2 + 1) * values[k]
        + (t**3 - 2 * t**2 + t) * width * slopes[k]
        + (3 * t**2 - 2 * t**3) * values[k + 1]
        + (t**3 - t**2) * width * slopes[k + 1]
    )


def growing_fold(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Draw CurveVel's fold: unit size, two or more wavelengths, larger and tighter to the right.

    Returns:
        Displacement at ``x``, shaped as ``x``.
    """
    values = np.empty(len(_NODES))
    values[0] = rng.normal()
    for i, correlation in enumerate(_ALTERNATION):
        values[i + 1] = correlation * values[i] + np.sqrt(1 - correlation**2) * rng.normal()
    line = spline_basis(_NODES, x.ravel()) @ (values * _SPREAD)
    return (line - line.mean()).reshape(x.shape)


def waves(rng: np.random.Generator, x: np.ndarray, wavelength: float, height: float) -> np.ndarray:
    """Draw a fold of about one wavelength everywhere, ``height`` cells from crest to trough at the median.

    Returns:
        Displacement in cells, shaped as ``x``.
    """
    half = wavelength / 2
    # Faults carry material from outside the map, so the fold goes on there.
    nodes = np.arange(-40.0, 110.0 + half, half) + rng.uniform(-half, 0)
    nodes = nodes + rng.uniform(-0.2, 0.2, len(nodes)) * half
    sign = np.where(np.arange(len(nodes)) % 2, 1.0, -1.0) * rng.choice([-1.0, 1.0])
    values = sign * height / 2 * rng.uniform(0.4, 1.6, len(nodes))
    fine = np.linspace(nodes[0], nodes[-1], 600)
    return np.interp(x, fine, spline_basis(nodes, fine) @ values)
