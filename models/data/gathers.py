"""Load training data into memory: decimated gathers of OpenFWI files, with a cache beside each file.

A gather is oversampled ten times for a 15 Hz wavelet. Decimated to float16, a sample takes 70 kB instead of 1.4 MB, so
tens of thousands of samples fit into memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firmware_py.inference.companding import Companding, compress, thin_samples
from models.errors import ModelsError
from physics.acquisition import Acquisition, AcquisitionError
from physics.files.openfwi_files import OpenFWIPair, find_pairs, twins_path_of
from physics.files.survey_file import read_survey
from physics.normalise import normalise_velocity

# Samples companded at a time: companding takes six times a sample's memory.
PARTS_AT_ONCE = 100
# Share by which a map's velocities may lie outside the survey's; covers rounding.
OUTSIDE = 0.01


class DataError(ModelsError, ValueError):
    """The training data cannot be used as requested."""


@dataclass(frozen=True)
class DecimatedSet:
    """Hold ``gathers (n, T', R, S)`` float16, ``maps (n, nz, nx)`` float32 in [-1, 1] and ``families (n,)``.

    ``twins (n, T', R, n_twins)`` float16 are the shots from ``acquisition.twin_cells``; None if they were not
    modelled.
    """

    gathers: np.ndarray
    maps: np.ndarray
    families: np.ndarray
    acquisition: Acquisition
    twins: np.ndarray | None = None

    @property
    def mirrors(self) -> bool:
        """True if samples can be mirrored exactly, which needs a mirror position for each receiver and shot."""
        complete = self.twins is not None or not self.acquisition.twin_cells
        return complete and self.acquisition.mirror_order() is not None

    def mirrored(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gathers and maps of samples ``indices``, mirrored left to right."""
        order = self.acquisition.mirror_order()
        assert order is not None
        shots, receivers = order
        gathers = self.gathers[indices]
        if self.twins is not None:
            gathers = np.concatenate([gathers, self.twins[indices]], axis=-1)
        return gathers[:, :, receivers][..., shots], self.maps[indices][:, :, ::-1]

    def __len__(self) -> int:
        return len(self.maps)


def load_decimated(
    folders: list[Path],
    acquisition: Acquisition,
    decimation: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DecimatedSet:
    """Load every gather-map pair under ``folders``, decimated (``firmware_py.inference.companding``).

    Raises:
        DataError: There are no pairs, they are of another survey, or samples are not finite or do not fit float16.
        OpenFWIFileError: A file is not in OpenFWI's layout.
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
    gathers, maps, families, twins = [], [], [], []
    for i, pair in enumerate(pairs):
        gathers.append(_decimated_file(pair.gather_path, pair.gathers(), decimation))
        pair_twins = pair.twins()
        if pair_twins is not None:
            twins.append(_decimated_file(twins_path_of(pair.gather_path), pair_twins, decimation))
        file_maps = np.asarray(pair.maps())[:, 0]
        _check_maps(pair, file_maps)
        maps.append(normalise_velocity(file_maps, acquisition).astype(np.float32))
        families.extend([pair.family] * len(file_maps))
        on_progress(i + 1, len(pairs))
    # Mirroring needs twins in every file; otherwise it is off.
    whole = np.concatenate(twins) if len(twins) == len(pairs) else None
    return DecimatedSet(np.concatenate(gathers), np.concatenate(maps), np.array(families), acquisition, whole)


def find_manifest(folder: Path) -> Path | None:
    """Return the manifest of the data set that ``folder`` is, or is a family's part of; None without one.

    Gathers of a family lie in ``FAMILY/`` or ``FAMILY/data/`` of a data set.
    """
    here = folder.resolve()
    if (here / "manifest.json").exists():
        return here / "manifest.json"
    for part in (here, here.parent):
        path = part.parent / "manifest.json"
        families = read_manifest(path).get("families")
        if isinstance(families, list) and part.name.lower() in families:
            return path
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; empty if there is none or `epic data generate` did not write it."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def survey_of(folder: Path) -> Acquisition | None:
    """Return the survey of the data set that ``folder`` is or is a part of; None without a manifest."""
    path = find_manifest(folder)
    if path is None:
        return None
    try:
        return read_survey(path)
    except AcquisitionError as error:
        raise DataError(f"{path}: not the manifest of a data set ({error}); copy the folder again") from None


def _decimated_file(source: Path, gathers: np.ndarray, decimation: int) -> np.ndarray:
    """Return the decimated shots of one file, ``(n, T', R, S)`` float16, from a valid cache if there is one.

    Args:
        source: The file, beside which the cache lies.
        gathers: Its shots, ``(n, S, T, R)``, memory-mapped.
        decimation: Samples averaged into one.

    Raises:
        DataError: Samples are not finite or do not fit float16.
    """
    cache = source.with_name(f".{source.stem}.thin{decimation}.npy")
    cached = _read_cache(cache, source, len(gathers))
    if cached is not None:
        _check_decimated(source, gathers, cached)
        return cached
    # Overflow to infinity is rejected below.
    with np.errstate(over="ignore", invalid="ignore"):
        decimated = decimate_gathers(gathers, decimation)
    _check_decimated(source, gathers, decimated)
    # The process ID keeps concurrent runs on the same data apart.
    temporary = cache.with_suffix(f".{os.getpid()}.tmp.npy")
    try:
        np.save(temporary, decimated)
        os.replace(temporary, cache)
    except OSError:
        # The folder is read-only or the disk is full: continue without a cache.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return decimated


def decimate_gathers(gathers: np.ndarray, decimation: int) -> np.ndarray:
    """Decimate raw gathers ``(n, S, T, R)`` to ``(n, T', R, S)`` float16."""
    return np.concatenate(
        [
            thin_samples(np.asarray(gathers[i : i + 50], dtype=np.float32), decimation, axis=2)
            .transpose(0, 2, 3, 1)
            .astype(np.float16)
            for i in range(0, len(gathers), 50)
        ]
    )


def _read_cache(cache: Path, source: Path, n: int) -> np.ndarray | None:
    """Read the cache; None if ``source`` is newer or has another number of samples."""
    if not cache.exists():
        return None
    # Copying or moving a file can keep an old mtime, but always updates its ctime.
    there = source.stat()
    if cache.stat().st_mtime_ns <= max(there.st_mtime_ns, there.st_ctime_ns):
        return None
    try:
        cached = np.load(cache)
    except (ValueError, EOFError):
        return None
    return cached if len(cached) == n else None


def _check_decimated(source: Path, gathers: np.ndarray, decimated: np.ndarray) -> None:
    within = (1, 2, 3)
    wrong = ~np.isfinite(decimated).all(axis=within)
    # Zero is valid if the recording is zero as well.
    for i in np.flatnonzero(~decimated.any(axis=within)):
        wrong[i] = bool(np.any(gathers[i]))
    if not wrong.any():
        return
    sample = int(np.flatnonzero(wrong)[0])
    gather = np.asarray(gathers[sample], np.float32)
    where = f"{source}: sample {sample}"
    if not np.isfinite(gather).all():
        raise DataError(f"{where}: expected finite samples, got NaN or infinity; mend it or leave it out")
    raise DataError(
        f"{where}: expected a gather that float16 holds, like the benchmark's with peaks of 20 to 60, got one of "
        f"{np.abs(gather).max():.3g}; multiply all gathers by one factor"
    )


def _check_maps(pair: OpenFWIPair, maps: np.ndarray) -> None:
    wrong = ~(np.isfinite(maps) & (maps > 0)).all(axis=(1, 2))
    if wrong.any():
        raise DataError(
            f"{pair.map_path}: sample {np.flatnonzero(wrong)[0]}: expected velocities in m/s, got NaN, infinity, 0 or "
            "less; mend it or leave it out"
        )
    a = pair.acquisition
    outside = (maps < a.velocity_min_mps * (1 - OUTSIDE)) | (maps > a.velocity_max_mps * (1 + OUTSIDE))
    if (wrong := outside.any(axis=(1, 2))).any():
        sample = np.flatnonzero(wrong)[0]
        raise DataError(
            f"{pair.map_path}: sample {sample}: expected velocities of {a.velocity_min_mps:g} to "
            f"{a.velocity_max_mps:g} m/s, got {maps[sample].min():g} to {maps[sample].max():g}; write maps in m/s, or "
            "make the data with a survey.toml whose [map] velocity_mps holds them"
        )


def split_to_devices(gathers: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Split ``(n, T', R, S)`` to ``(n, n_devices, T', width, S)``; narrower devices are padded with zeros."""
    n, n_time, _, n_sources = gathers.shape
    width = acquisition.max_device_receivers
    parts = np.zeros((n, acquisition.n_devices, n_time, width, n_sources), dtype=gathers.dtype)
    for device, receivers in enumerate(acquisition.device_receivers):
        parts[:, device, :, : len(receivers)] = gathers[:, :, list(receivers)]
    return parts


def device_parts(gathers: np.ndarray, acquisition: Acquisition, companding: Companding) -> np.ndarray:
    """Return the encoder input of every device, companded, before rounding to int8.

    Decimated gathers ``(n, T', R, S)`` -> ``(n, n_devices, T', width, S)`` float32.
    """
    return split_to_devices(compress(gathers.astype(np.float32), companding), acquisition)
