"""Score how far received latents are from the training latents (out-of-distribution detection).

A decoder predicts a map from any input, including noise or another wavelet. Latents of such gathers lie outside the
distribution of the training latents. The score costs no extra byte on the link.

The score is the squared Mahalanobis distance of a device's latent from the training latents, divided by the latent's
length and averaged over the devices present (Lee et al., NeurIPS 2018). It is about 1 for gathers like those of
training. The variance of each principal direction is at least ``FLOOR`` of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.errors import ModelsError
from physics.files.atomic import atomic_write

FLOOR = 1e-4
# False-alarm rate on in-distribution gathers; it sets the limit.
FALSE_ALARMS = 0.01
# Training gathers whose latents define the statistics.
OOD_GATHERS = 2000


class OodError(ModelsError, ValueError):
    """An OOD file is missing or damaged, or there are too few latents to measure it."""


@dataclass(frozen=True)
class OodStatistics:
    """OOD statistics: ``mean (latent,)`` and ``whitening (latent, latent)`` of training latents, float32.

    A score above ``limit`` counts as out of distribution.
    """

    mean: np.ndarray
    whitening: np.ndarray
    limit: float
    _of_first: dict[tuple[int, float], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def scores(
        self,
        latents: np.ndarray,
        present: np.ndarray,
        sent: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the OOD scores ``(n,)`` of events. At least one device must be present.

        Args:
            latents: ``(n, n_devices, latent)`` float; rows of absent devices are ignored.
            present: ``(n, n_devices)`` bool.
            sent: Number of leading values that each device sent, ``(n, n_devices)``; only these are scored.
            noise: Variance added to each value by coarser rounding, ``(n, n_devices)``.
        """
        off = np.asarray(latents, np.float32) - self.mean
        sent = np.full(off.shape[:2], off.shape[2]) if sent is None else sent
        noise = np.zeros(off.shape[:2]) if noise is None else noise
        distances = np.zeros(off.shape[:2])
        for count, variance in set(zip(sent[present].tolist(), noise[present].tolist(), strict=True)):
            judged = np.square(off[..., :count] @ self._whitening_of_first(count, variance)).mean(axis=-1)
            distances = np.where(present & (sent == count) & (noise == variance), judged, distances)
        return distances.sum(axis=1) / present.sum(axis=1)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of each value over the training latents ``(latent,)``."""
        return np.linalg.norm(np.linalg.inv(self.whitening.astype(np.float64)), axis=0)

    def _whitening_of_first(self, count: int, variance: float) -> np.ndarray:
        """Return the whitening ``(count, count)`` of the first ``count`` values, with added noise variance."""
        if count == len(self.mean) and not variance:
            return self.whitening
        if (count, variance) not in self._of_first:
            spreading = np.linalg.inv(self.whitening.astype(np.float64))
            covariance = (spreading.T @ spreading)[:count, :count] + variance * np.eye(count)
            whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
            self._of_first[count, variance] = whitening.astype(np.float32)
        return self._of_first[count, variance]

    def save(self, path: Path) -> None:
        """Write a .npz file atomically."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, whitening=self.whitening, limit=np.float32(self.limit))


def measure_ood(latents: np.ndarray, validation: np.ndarray) -> OodStatistics:
    """Measure OOD statistics from latents of training gathers ``(n, n_devices, latent)``.

    The limit is set on ``validation``, latents of the validation set.

    Raises:
        OodError: The training latents are not more numerous than the values of one, or the validation set is empty.
    """
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    if len(flat) <= flat.shape[1] or not len(validation):
        raise OodError(
            f"ood: expected more than {flat.shape[1]} training latents and some of the validation set, got {len(flat)} "
            f"and {len(validation)}; train on more samples"
        )
    mean = flat.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(flat.T))
    whitening = directions / np.sqrt(np.maximum(variances, FLOOR * variances.max()))
    fitted = OodStatistics(mean.astype(np.float32), whitening.astype(np.float32), np.inf)
    scores = fitted.scores(validation, np.ones(validation.shape[:2], bool))
    return OodStatistics(fitted.mean, fitted.whitening, float(np.quantile(scores, 1.0 - FALSE_ALARMS)))


def load_ood(path: Path, latent: int) -> OodStatistics:
    """Read OOD statistics written by ``save``, for latents of the given length. Raises ``OodError``."""
    try:
        with np.load(path, allow_pickle=False) as content:
            found = OodStatistics(content["mean"], content["whitening"], float(content["limit"]))
    except Exception as error:
        # numpy raises many exception types for a damaged archive.
        raise OodError(f"{path}: cannot be read ({error}); copy the whole folder again") from None
    if found.mean.shape != (latent,) or found.whitening.shape != (latent, latent):
        raise OodError(
            f"{path}: expected latents of {latent}, got {found.mean.shape} and {found.whitening.shape}; "
            "copy the whole folder again"
        )
    return found
