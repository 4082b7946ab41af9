"""Model training samples on a GPU and keep them there, so that a set need not fit on a disk.

The samples continue the sequence of a data set. A map depends on (family, seed, index) alone, so the first samples of
each family equal those in the data set's files. Every 50th sample is kept out of training, as for files.
"""

from __future__ import annotations

import json
import os
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from firmware_py.inference.companding import thin_samples
from models.data.batches import log_scaled
from models.data.gathers import DecimatedSet
from models.errors import TrainingError
from physics.acquisition import Acquisition
from physics.normalise import log_transform, normalise_velocity
from physics.sequence import Sequence, draw_maps

# Benchmark samples (1 ms each) averaged into one stored sample. A 15 Hz wavelet has no energy above 100 Hz, so nothing
# is lost. EPIC's decimated and InversionNet's whole gathers are both derived from the stored samples.
STORED_AVERAGE = 5
# Samples a shard; an incomplete last shard is dropped.
SHARD_SAMPLES = 5_120
# Share of cosine frequencies (multiples of half a period a record) kept: up to 85 Hz for the benchmark's 1 s.
KEPT_SHARE = 0.17
RANGE_SAMPLES = 500
# Every 50th sample is kept out of training, as for files; some of these form the validation set.
VALIDATION_EVERY = 50
VALIDATION_PER_FAMILY = 30


@dataclass(frozen=True)
class Simulated:
    """Hold ``count`` simulated samples of each family.

    Attributes:
        shards: JAX arrays on the GPU, both float16: gathers ``(n, T / STORED_AVERAGE, R, S)`` with the shots of
            ``acquisition.with_twins()``, and normalised maps ``(n, nz, nx)``.
        validation_gathers: Gathers of the validation set, ``(n, T / STORED_AVERAGE, R, S)``, on the host.
    """

    count: int
    shards: list[tuple[Any, Any]]
    validation: DecimatedSet
    validation_gathers: np.ndarray

    @property
    def trained_on(self) -> int:
        return sum(len(maps) for _, maps in self.shards)

    def log_range(self) -> list[float]:
        """Return the least and greatest log-transformed value of a subset of the training gathers."""
        values = log_transform(np.asarray(self.shards[0][0][:RANGE_SAMPLES], np.float32))
        return [float(values.min()), float(values.max())]


class ValidationWhole:
    """Feed the validation set to a centralised network; see ``models.data.batches.InversionNetBatches``."""

    def __init__(self, simulated: Simulated, log_range: abc.Sequence[float]) -> None:
        self.data = simulated.validation
        self._gathers, self._log_range = simulated.validation_gathers, log_range
        self._matrix = whole_records(self.data.acquisition.n_time, STORED_AVERAGE)

    def plain(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = np.einsum("ts,nsrc->nctr", self._matrix, self._gathers[indices])
        return log_scaled(whole, self._log_range), self.data.maps[indices][..., None]


def whole_records(n_time: int, average: int) -> np.ndarray:
    """Return the matrix ``(n_time, n_time // average)`` that restores a band-limited record from its sample means.

    The lowest cosines (``KEPT_SHARE`` of the record's frequencies) are fitted to the means. The error for a 15 Hz
    wavelet is 2.4e-4, about the resolution of float16.
    """
    n = np.arange(n_time) + 0.5
    cosines = np.cos(np.pi * np.outer(n, np.arange(round(KEPT_SHARE * n_time))) / n_time)
    used = n_time // average * average
    means = cosines[:used].reshape(used // average, average, -1).mean(axis=1)
    return (cosines @ np.linalg.pinv(means, rcond=1e-3)).astype(np.float32)


def read_sequence(folder: Path) -> Sequence:
    """Return the sequence that the data set in ``folder`` begins; raise ``TrainingError`` if it cannot be continued."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text())
        sequence = Sequence(
            tuple(found["families"]), found["seed"], Acquisition.from_dict(found["acquisition"])
        )
        engine, first, count = found["engine"], found.get("first", 0), int(found["count"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: expected the manifest of a data set as `epic data generate` writes it ({error})"
        ) from None
    if engine not in ("openfwi", "cuda") or first != 0:
        raise TrainingError(
            f"{folder}: --simulate goes on with a sequence of engine openfwi or cuda from its first sample, got "
            f"{engine} from {first}"
        )
    if count % VALIDATION_EVERY:
        # Samples are counted across all families; a family size divisible by 50 keeps every 50th sample of each family.
        fitting = max(1, count // VALIDATION_EVERY) * VALIDATION_EVERY
        raise TrainingError(
            f"{folder}: --simulate expected a multiple of {VALIDATION_EVERY} samples a family, to keep the same ones "
            f"from training, got {count}; generate {fitting} in another folder"
        )
    return sequence


def shard_shapes(sequence: Sequence, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a shard's gathers and maps for ``count`` simulated samples of each family."""
    a = sequence.acquisition
    size = min(_trained_on(sequence, count), SHARD_SAMPLES)
    n_shots = a.with_twins().n_sources
    return (size, a.n_time // STORED_AVERAGE, a.n_receivers, n_shots), (size, a.n_depth, a.n_width)


def _trained_on(sequence: Sequence, count: int) -> int:
    return (count - count // VALIDATION_EVERY) * len(sequence.families)


def simulate(
    sequence: Sequence,
    count: int,
    decimation: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Simulated:
    """Model ``count`` samples of each family with ``physics.engines.cuda``.

    Raises:
        ModellingError: There is no GPU.
        TrainingError: ``decimation`` is not a multiple of the stored average, or there are too few samples.
    """
    a = sequence.acquisition
    if keras.backend.backend() != "jax":
        raise TrainingError(
            "train: simulated samples and the steps that learn from them stay on the GPU through JAX; set "
            "KERAS_BACKEND=jax, or train on files"
        )
    if decimation % STORED_AVERAGE:
        raise TrainingError(
            f"train: expected a --decimation that is a multiple of {STORED_AVERAGE} with --simulate, got {decimation}"
        )
    if count < VALIDATION_EVERY:
        raise TrainingError(
            f"train: of every {VALIDATION_EVERY} samples one is kept for validation; expected at least as many a "
            f"family, got {count}"
        )
    import jax

    from physics.engines.cuda import load_cupy, record

    cupy = load_cupy()
    total = count * len(sequence.families)
    store = _Store(cupy, shard_shapes(sequence, count), _trained_on(sequence, count))
    kept_gathers: list[Any] = []
    kept_maps: list[np.ndarray] = []
    families: list[str] = []
    done = 0
    for indices, maps in draw_maps(sequence, count, max(1, (os.cpu_count() or 2) - 1)):
        spared = indices % VALIDATION_EVERY == VALIDATION_EVERY - 1
        store.add(record(maps[~spared], a.with_twins(), STORED_AVERAGE), normalise_velocity(maps[~spared], a))
        validation = spared & (indices < VALIDATION_EVERY * VALIDATION_PER_FAMILY)
        if validation.any():
            kept_gathers.append(record(maps[validation], a, STORED_AVERAGE))
            kept_maps.append(normalise_velocity(maps[validation], a))
            families += [
                sequence.families[row % len(sequence.families)] for row in np.flatnonzero(validation)
            ]
        done += len(maps)
        on_progress(done, total)
    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    shards = [
        (jax.dlpack.from_dlpack(gathers), jax.dlpack.from_dlpack(maps)) for gathers, maps in store.shards
    ]
    gathers = np.concatenate([cupy.asnumpy(some) for some in kept_gathers])
    decimated = thin_samples(gathers, decimation // STORED_AVERAGE, axis=1).astype(np.float16)
    maps = np.concatenate(kept_maps).astype(np.float32)
    return Simulated(count, shards, DecimatedSet(decimated, maps, np.array(families), a), gathers)


class _Store:
    """Fill shards of one size on the GPU in turn; an incomplete shard is dropped, unless it is the only one."""

    def __init__(self, cupy: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], samples: int) -> None:
        self._cupy = cupy
        self._shapes = shapes
        self._size = shapes[0][0]
        self._n_shards = samples // self._size
        self.shards: list[tuple[Any, Any]] = []
        self._rows = self._size

    def add(self, gathers: Any, maps: np.ndarray) -> None:
        while len(gathers):
            if self._rows == self._size:
                if len(self.shards) == self._n_shards:
                    return
                self.shards.append(tuple(self._cupy.empty(shape, np.float16) for shape in self._shapes))
                self._rows = 0
            fits = min(len(gathers), self._size - self._rows)
            place = slice(self._rows, self._rows + fits)
            stored_gathers, stored_maps = self.shards[-1]
            stored_gathers[place] = gathers[:fits]
            stored_maps[place] = self._cupy.asarray(maps[:fits].astype(np.float16))
            self._rows += fits
            gathers, maps = gathers[fits:], maps[fits:]
