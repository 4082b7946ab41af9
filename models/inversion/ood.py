"""How unlike the training gathers is what devices sent? A distance of latents, at the centre, that costs no byte.

A decoder draws a map of anything: of noise, of another wavelet. Latents of such gathers lie where those of training
gathers do not. The score is the squared Mahalanobis distance of a device's latent from the training latents, over the
latent's length, averaged over the devices heard (Lee et al., NeurIPS 2018): about 1 for gathers like those of training.
Directions in which the training latents hardly vary count as if they varied by ``FLOOR`` of the widest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.errors import ModelsError
from physics.files.atomic import atomic_write

FLOOR = 1e-4
# Of gathers like those of training, so many score above the limit.
FALSE_ALARMS = 0.01


class OodError(ModelsError, ValueError):
    """A familiarity file is missing or damaged, or there is too little to measure it on."""


@dataclass(frozen=True)
class Familiarity:
    """``mean (latent,)`` and ``whitening (latent, latent)`` of training latents, float32; a score above ``limit`` is
    unlike them."""

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
        """``latents (n, n_devices, latent)`` float and ``present (n, n_devices)`` bool -> ``(n,)``.

        Of a device that sent only its first values, ``sent (n, n_devices)`` of them, these alone are judged; what
        rounding to fewer bits adds to the variance of each of its values is ``noise (n, n_devices)``. What a
        device that was not heard has in ``latents`` does not matter. At least one must be heard.
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
        """As ``whitening``, of the first values alone and with so much noise: ``(count, count)``."""
        if count == len(self.mean) and not variance:
            return self.whitening
        if (count, variance) not in self._of_first:
            spreading = np.linalg.inv(self.whitening.astype(np.float64))
            covariance = (spreading.T @ spreading)[:count, :count] + variance * np.eye(count)
            whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
            self._of_first[count, variance] = whitening.astype(np.float32)
        return self._of_first[count, variance]

    def save(self, path: Path) -> None:
        """Write a .npz that appears when whole."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, whitening=self.whitening, limit=np.float32(self.limit))


def measure_familiarity(latents: np.ndarray, watched: np.ndarray) -> Familiarity:
    """From latents of training gathers ``(n, n_devices, latent)``; the limit from ``watched`` others of the same kind.

    Raises ``OodError`` unless there are more training latents than values in one, and some watched.
    """
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    if len(flat) <= flat.shape[1] or not len(watched):
        raise OodError(
            f"familiarity: expected more than {flat.shape[1]} training latents and some watched, got {len(flat)} "
            f"and {len(watched)}; train on more samples"
        )
    mean = flat.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(flat.T))
    whitening = directions / np.sqrt(np.maximum(variances, FLOOR * variances.max()))
    fitted = Familiarity(mean.astype(np.float32), whitening.astype(np.float32), np.inf)
    scores = fitted.scores(watched, np.ones(watched.shape[:2], bool))
    return Familiarity(fitted.mean, fitted.whitening, float(np.quantile(scores, 1.0 - FALSE_ALARMS)))


def load_familiarity(path: Path, latent: int) -> Familiarity:
    """Read what ``save`` wrote for latents of that length. Raises ``OodError``."""
    try:
        with np.load(path, allow_pickle=False) as content:
            found = Familiarity(content["mean"], content["whitening"], float(content["limit"]))
    except Exception as error:
        # A damaged archive makes numpy's reader fail as its parsers happen to.
        raise OodError(f"{path}: cannot be read ({error}); copy the whole folder again") from None
    if found.mean.shape != (latent,) or found.whitening.shape != (latent, latent):
        raise OodError(
            f"{path}: expected latents of {latent}, got {found.mean.shape} and {found.whitening.shape}; "
            "copy the whole folder again"
        )
    return found
