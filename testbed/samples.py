"""Shipped sample gathers: two of each family, with their true maps.

A float32 gather is 1.4 MB. The file holds int16 samples scaled by the gather's peak, second differences along time,
LZMA-compressed: about 75 kB. The rounding noise is 101 dB below the peak, and some 40 dB below the signal of the last
half second. The signal is ten times oversampled, so its differences are small numbers.
"""

from __future__ import annotations

import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physics.files.atomic import atomic_write
from testbed.errors import TestbedError

SHIPPED = Path(__file__).parent / "samples" / "openfwi-scheme.npz"


class SamplesError(TestbedError, ValueError):
    """A sample file is missing or damaged."""


@dataclass(frozen=True)
class Sample:
    """One event: ``gather (S, T, R)`` float32, ``map_mps (nz, nx)`` m/s or None, its family."""

    family: str
    gather: np.ndarray
    map_mps: np.ndarray | None


def pack_gather(gather: np.ndarray) -> tuple[np.ndarray, float]:
    """Compress ``(S, T, R)`` float; return the bytes (uint8) and the value of one step."""
    step = float(np.abs(gather).max()) / 32767 or 1.0
    steps = np.rint(gather / step).astype(np.int32)
    differences = np.diff(steps, n=2, axis=1, prepend=np.zeros((steps.shape[0], 2, steps.shape[2]), np.int32))
    # Time last, so that neighbours in the file are neighbours in time. A second difference can need 17 bits; rough
    # signals raise an error.
    if np.abs(differences).max() > 32767:
        raise SamplesError("samples: a gather too rough for the sample codec (second difference over int16)")
    data = np.ascontiguousarray(differences.astype("<i2").transpose(0, 2, 1)).tobytes()
    return np.frombuffer(lzma.compress(data), np.uint8), step


def unpack_gather(packed: np.ndarray, step: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Undo ``pack_gather`` to within half a step: float32 ``shape``. Raises ``SamplesError``."""
    n_sources, n_time, n_receivers = shape
    try:
        data = np.frombuffer(lzma.decompress(packed.tobytes()), "<i2")
        differences = data.reshape(n_sources, n_receivers, n_time).transpose(0, 2, 1).astype(np.int32)
    except (lzma.LZMAError, ValueError) as error:
        raise SamplesError(f"samples: damaged gather ({error}); copy the file again") from None
    return (differences.cumsum(axis=1).cumsum(axis=1) * step).astype(np.float32)


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples with maps into one file, atomically."""
    arrays: dict[str, np.ndarray] = {
        "families": np.array([sample.family for sample in samples]),
        "maps_mps": np.stack([sample.map_mps for sample in samples if sample.map_mps is not None]),
        "shape": np.array(samples[0].gather.shape),
    }
    steps = []
    for i, sample in enumerate(samples):
        arrays[f"gather{i}"], step = pack_gather(sample.gather)
        steps.append(step)
    arrays["steps"] = np.array(steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_samples(path: Path = SHIPPED) -> list[Sample]:
    """Load samples from a file that ``write_samples`` wrote. Raises ``SamplesError``."""
    if not path.exists():
        raise SamplesError(f"{path}: not found; make it with `python -m testbed.make_samples`")
    try:
        with np.load(path, allow_pickle=False) as file:
            n_sources, n_time, n_receivers = (int(n) for n in file["shape"])
            return [
                Sample(
                    str(family),
                    unpack_gather(file[f"gather{i}"], float(step), (n_sources, n_time, n_receivers)),
                    map_mps,
                )
                for i, (family, step, map_mps) in enumerate(
                    zip(file["families"], file["steps"], file["maps_mps"], strict=True)
                )
            ]
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, SamplesError):
            raise
        raise SamplesError(f"{path}: not a whole sample file ({error}); copy it again") from None
