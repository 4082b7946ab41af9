"""Roughness of a map: its total variation, smoothed below a contrast."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


class Roughness:
    """Sum over the cells of sqrt(|gradient|^2 + contrast^2) - contrast.

    Steps far above ``contrast`` cost their height (total variation: blocky maps). Steps below it cost their square
    (smooth maps).

    Args:
        shape: ``(nz, nx)`` of a map.
        contrast: In the unit of the map.
    """

    def __init__(self, shape: tuple[int, ...], contrast: float) -> None:
        (nz, nx), self._contrast = shape, contrast
        self._down = sp.kron(_differences(nz), sp.eye(nx)).tocsr()
        self._across = sp.kron(sp.eye(nz), _differences(nx)).tocsr()

    def value(self, velocity: np.ndarray) -> float:
        """Return the roughness of a map ``(nz, nx)``, in its unit."""
        return float(np.sum(self._sizes(velocity) - self._contrast))

    def matrix(self, velocity: np.ndarray) -> sp.csr_matrix:
        """Return the symmetric matrix ``A`` for which ``A m`` is the derivative at the flattened map ``m``.

        It also approximates the second derivative (lagged diffusivity: Vogel and Oman 1996, SIAM Journal on Scientific
        Computing 17).
        """
        weights = sp.diags(1.0 / self._sizes(velocity))
        return (self._down.T @ weights @ self._down + self._across.T @ weights @ self._across).tocsr()

    def derivative(self, velocity: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the map, ``(nz, nx)``."""
        return (self.matrix(velocity) @ velocity.ravel()).reshape(velocity.shape)

    def of_steps(self, step: float, cells: int) -> float:
        """Return the roughness of ``cells`` steps of a height."""
        return cells * float(np.hypot(step, self._contrast) - self._contrast)

    def _sizes(self, velocity: np.ndarray) -> np.ndarray:
        flat = velocity.ravel()
        return np.sqrt(
            np.square(self._down @ flat) + np.square(self._across @ flat) + np.square(self._contrast)
        )


def _differences(n: int) -> sp.csr_matrix:
    """Forward differences; the last row is zero."""
    rows = sp.diags([-np.ones(n), np.ones(n - 1)], [0, 1], format="lil")
    rows[-1] = 0.0
    return rows.tocsr()
