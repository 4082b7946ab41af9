"""The benchmark's metrics: MAE, RMSE and SSIM on maps scaled to [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np

from physics.errors import PhysicsError

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 1e-4, 9e-4
# Maps per batch: SSIM takes ten times a map's memory.
_MAPS_AT_ONCE = 500


class MetricError(PhysicsError, ValueError):
    """The maps cannot be compared."""


def _check(
    predicted: np.ndarray, true: np.ndarray, dtype: type | None = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = np.asarray(predicted, dtype), np.asarray(true, dtype)
    if predicted.shape != true.shape or predicted.ndim < 2:
        raise MetricError(
            f"metrics: expected two stacks of maps of one shape, got {predicted.shape} and {true.shape}"
        )
    if not predicted.size:
        raise MetricError(f"metrics: expected at least one map, got {predicted.shape}")
    return predicted, true


def mae(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the mean absolute error of maps ``(..., nz, nx)``, in their unit."""
    predicted, true = _check(predicted, true)
    return float(np.abs(predicted - true).mean())


def rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the root-mean-square error of maps ``(..., nz, nx)``, in their unit."""
    predicted, true = _check(predicted, true)
    return float(np.sqrt(np.square(predicted - true).mean()))


def ssim(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the mean structural similarity of normalised maps ``(..., nz, nx)`` in [-1, 1].

    The definition is OpenFWI's: on x / 2 + 0.5, an 11 x 11 Gaussian window of sigma 1.5, zero padding, C1 = 1e-4, C2 =
    9e-4 (Wang et al., IEEE Trans. Image Process. 2004, for a range of 1).
    """
    predicted, true = _check(predicted, true, None)
    size = predicted.shape[-2:]
    along_z, along_x = map(blur_matrix, size)
    predicted, true = predicted.reshape(-1, *size), true.reshape(-1, *size)
    total = 0.0
    for start in range(0, len(predicted), _MAPS_AT_ONCE):
        some = slice(start, start + _MAPS_AT_ONCE)
        x, y = predicted[some].astype(np.float64), true[some].astype(np.float64)
        total += float(similarity(x, y, along_z, along_x).sum())
    return total / predicted.size


def similarity(predicted: Any, true: Any, along_z: Any, along_x: Any) -> Any:
    """Return ``ssim`` per cell ``(..., nz, nx)``; works on tensors of any library.

    The blur matrices of both axes come from ``blur_matrix``.
    """

    def blur(images):
        return along_z @ images @ along_x

    x, y = predicted / 2 + 0.5, true / 2 + 0.5
    mean_x, mean_y = blur(x), blur(y)
    spread = blur(x * x) + blur(y * y) - mean_x**2 - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    return ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (spread + _C2)
    )


def blur_matrix(n: int) -> np.ndarray:
    """Return SSIM's Gaussian window along an axis of ``n`` cells as a symmetric matrix ``(n, n)``, zero padding."""
    away = np.arange(_WINDOW) - _WINDOW // 2
    kernel = np.exp(-(away**2) / (2 * _SIGMA**2))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    weights = np.exp(-(distance**2) / (2 * _SIGMA**2)) / kernel.sum()
    return np.where(distance <= _WINDOW // 2, weights, 0.0)
