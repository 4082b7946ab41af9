"""Training data in memory: thinned gathers of many OpenFWI files, cached beside them.

A gather is ten times oversampled for a 15 Hz wavelet, so the thinned set of tens of thousands of
samples fits into memory as float16 (70 kB a sample instead of 1.4 MB).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_py.compand import Companding, compress, thin_samples
from physics.acquisition import Acquisition, AcquisitionError
from physics.normalise import normalise_velocity
from physics.openfwi_files import OpenFWIPair, find_pairs
from physics.survey_file import read_survey


class DataError(ValueError):
    """The training data cannot be used as asked."""


@dataclass(frozen=True)
class ThinnedSet:
    """``gathers (n, T/thin, R, S)`` float16, ``maps (n, nz, nx)`` float32 in [-1, 1], ``families (n,)``."""

    gathers: np.ndarray
    maps: np.ndarray
    families: np.ndarray
    acquisition: Acquisition

    def __len__(self) -> int:
        return len(self.maps)


def load_thinned(
    folders: list[Path],
    acquisition: Acquisition,
    thin: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ThinnedSet:
    """Every gather-map pair under ``folders``, thinned by ``thin`` (see ``firmware_py.compand``).

    Raises ``DataError`` when there are none or they were made for another survey, ``OpenFWIFileError`` for
    files that are not OpenFWI's.
    """
    for folder in folders:
        made_for = survey_of(folder)
        if made_for is not None and not made_for.records_as(acquisition):
            raise DataError(
                f"{folder}: was made for another survey; make data with `epic data generate --survey`, or take its "
                "own survey with --survey FOLDER/manifest.json"
            )
    pairs = [pair for folder in folders for pair in find_pairs(folder, acquisition)]
    if not pairs:
        raise DataError(
            f"data: no OpenFWI files under {', '.join(map(str, folders))}; make some with `epic data generate`"
        )
    gathers, maps, families = [], [], []
    for i, pair in enumerate(pairs):
        gathers.append(_thinned_file(pair, thin))
        file_maps = np.asarray(pair.maps())[:, 0]
        maps.append(normalise_velocity(file_maps, acquisition).astype(np.float32))
        families.extend([pair.family] * len(file_maps))
        on_progress(i + 1, len(pairs))
    return ThinnedSet(np.concatenate(gathers), np.concatenate(maps), np.array(families), acquisition)


def survey_of(folder: Path) -> Acquisition | None:
    """The survey that ``epic data generate`` made ``folder`` for; None for data from elsewhere."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        return read_survey(path)
    except AcquisitionError as error:
        raise DataError(f"{path}: not the manifest of a data set ({error}); copy the folder again") from None


def _thinned_file(pair: OpenFWIPair, thin: int) -> np.ndarray:
    """``(n, T/thin, R, S)`` float16 of one gather file, from its cache where that is newer."""
    source = pair.gather_path
    cache = source.with_name(f".{source.stem}.thin{thin}.npy")
    if cache.exists() and cache.stat().st_mtime >= source.stat().st_mtime:
        return np.load(cache)
    gathers = pair.gathers()
    thinned = np.concatenate(
        [
            thin_samples(np.asarray(gathers[i : i + 50], dtype=np.float32), thin, axis=2)
            .transpose(0, 2, 3, 1)
            .astype(np.float16)
            for i in range(0, len(gathers), 50)
        ]
    )
    # Named after the process: several runs may begin on the same data at once.
    temporary = cache.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, thinned)
    os.replace(temporary, cache)
    return thinned


def split_to_devices(gathers: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """``(n, T', R, S)`` -> ``(n, n_devices, T', width, S)``; narrower devices are padded with zeros."""
    n, n_time, _, n_sources = gathers.shape
    width = acquisition.max_device_receivers
    parts = np.zeros((n, acquisition.n_devices, n_time, width, n_sources), dtype=gathers.dtype)
    for device, receivers in enumerate(acquisition.device_receivers):
        parts[:, device, :, : len(receivers)] = gathers[:, :, list(receivers)]
    return parts


def device_parts(gathers: np.ndarray, acquisition: Acquisition, companding: Companding) -> np.ndarray:
    """What every device feeds its encoder: thinned ``(n, T', R, S)`` -> companded parts, float32.

    ``(n, n_devices, T', width, S)``, before the int8 rounding of the input.
    """
    return split_to_devices(compress(gathers.astype(np.float32), companding), acquisition)


def mirrored(gathers: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same survey seen from behind: receivers and sources in reverse order, map flipped.

    Exact for a survey that is symmetric about the middle of the line; OpenFWI's third source stands
    half a cell left of it, which the mirror ignores.
    """
    return gathers[:, :, ::-1, ::-1], maps[:, :, ::-1]
