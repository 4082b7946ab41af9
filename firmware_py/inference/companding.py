"""Prepare samples for the encoder: decimate, compand, quantise.

Reflections arrive 40-60 dB below the direct wave; linear int8 would erase them. ``asinh(k x)/c`` is linear for weak
samples and logarithmic for strong ones. A gather sampled at 1 ms is ten times oversampled for a 15 Hz wavelet. The mean
over ``thin`` samples therefore loses almost nothing, and shrinks the encoder's input, the largest term of its arena.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from firmware_py.errors import FirmwareError

# Expected peak of a device's part, as shares of the companding's full scale. Over the twenty shipped gathers it is
# 0.8 to 1.1; devices of other surveys may stand farther from the sources.
LOUDNESS_SHARES = (0.1, 3.0)


class GatherError(FirmwareError, ValueError):
    """The samples cannot be encoded: wrong shape, or not finite."""


@dataclass(frozen=True)
class Companding:
    """``y = asinh(k x) / c`` after the mean over ``thin`` samples."""

    k: float
    c: float
    thin: int

    def __post_init__(self) -> None:
        if not (self.k > 0 and self.c > 0 and self.thin >= 1):
            raise ValueError(f"companding: expected k > 0, c > 0, thin >= 1; got {self}")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Companding:
        return cls(k=float(values["k"]), c=float(values["c"]), thin=int(values["thin"]))


def thin_samples(samples: np.ndarray, thin: int, axis: int) -> np.ndarray:
    """Return means over blocks of ``thin`` samples along ``axis``; an incomplete last block is dropped."""
    samples = np.moveaxis(samples, axis, -1)
    n = samples.shape[-1] // thin
    blocks = samples[..., : n * thin].reshape(*samples.shape[:-1], n, thin)
    return np.moveaxis(blocks.mean(axis=-1, dtype=np.float32), -1, axis)


def compress(samples: np.ndarray, companding: Companding) -> np.ndarray:
    """Return ``asinh(k x) / c`` of decimated samples of any shape, float32."""
    return (np.arcsinh(companding.k * samples) / companding.c).astype(np.float32)


def compand(part: np.ndarray, companding: Companding, width: int) -> np.ndarray:
    """Convert a device's part of a gather to the encoder's input, before int8 rounding.

    Args:
        part: Samples ``(S, T, R)``.

    Returns:
        float32 ``(T // thin, width, S)`` in about [-1, 1]; receivers beyond R are zero.

    Raises:
        GatherError: The number of axes is wrong, there are too many receivers, or samples are not finite.
    """
    if part.ndim != 3 or part.shape[2] > width:
        raise GatherError(f"gather: expected (sources, samples, at most {width} receivers), got {part.shape}")
    with np.errstate(over="ignore"):
        part = part.astype(np.float32, copy=False)
    if not np.isfinite(part).all():
        bad = int(np.size(part) - np.isfinite(part).sum())
        raise GatherError(f"gather: expected finite samples, got {bad} NaN or infinite; mend the recording")
    with np.errstate(over="ignore", invalid="ignore"):
        compressed = compress(thin_samples(part, companding.thin, axis=1), companding).transpose(1, 2, 0)
    if not np.isfinite(compressed).all():
        raise GatherError(
            f"gather: expected samples that float32 can add up, got up to {np.abs(part).max():.3g}; "
            "mend the recording"
        )
    out = np.zeros((compressed.shape[0], width, compressed.shape[2]), np.float32)
    out[:, : compressed.shape[1]] = compressed
    return out


def unusual_loudness(part: np.ndarray, companding: Companding) -> str:
    """Say what is wrong with the loudness of a device's part; empty where it fits the model.

    A model knows gathers of the units it was trained on. Their loudest samples are near the full scale of the
    companding; a wrong gain changes the map without any other sign.

    Args:
        part: ``(S, T, R)``, finite.
        companding: The bundle's.
    """
    peak = float(np.max(np.abs(part), initial=0.0))
    if peak == 0:
        return "every sample is zero; check cables and recorder"
    full_scale = math.sinh(companding.c) / companding.k
    low, high = (share * full_scale for share in LOUDNESS_SHARES)
    if low <= peak <= high:
        return ""
    return f"peak {peak:.3g}, expected {low:.3g} to {high:.3g}; correct the gain of the recorder or of the import"


def quantise(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Round real values to int8, halves to even, saturating at -128 and 127."""
    return np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)


def dequantise(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Convert int8 back to float32."""
    return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)
