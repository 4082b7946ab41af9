"""Batches of training data, one class a recipe: what EPIC and the centralised baseline are fed.

Both see the same samples with the same mirror augmentation; EPIC also has devices drop out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from firmware_py.inference.companding import Companding
from models.data.field_augmentation import FAULTY_SHARE, add_faults
from models.data.gathers import ThinnedSet, device_parts
from models.networks.nested_latent import draw_rates, whole
from physics.files.openfwi_files import OpenFWIPair
from physics.normalise import scale_gather

# One sample in three trains with devices missing, so that any subset decodes.
DROP_OUT_SHARE = 0.33
# Half of the samples train with noise of up to this level on the thinned samples: 60 dB below the direct
# wave of a benchmark gather. It keeps the encoder from reading what no field recording carries.
NOISE_SHARE = 0.5
NOISE_MIN, NOISE_MAX = 1e-3, 5e-2
# The loudest thinned sample that the released models' companding spans, sinh(c) / k: what these levels are for.
BENCHMARK_PEAK = 49.48


# Half of the samples are seen from behind, where the survey and the data allow it.
MIRRORED_SHARE = 0.5


class EpicBatches:
    """Companded device parts and a mask of devices heard, and for an ordered latent of ``ordered`` values the rates
    of devices; see ``models.networks.network.build_network``. ``drop_out_share`` of the training samples lack
    devices."""

    def __init__(
        self,
        data: ThinnedSet,
        companding: Companding,
        ordered: int | None = None,
        drop_out_share: float = DROP_OUT_SHARE,
    ) -> None:
        self.data = data
        self.companding = companding
        self._ordered = ordered
        self._drop_out_share = drop_out_share
        self._mirrored_share = MIRRORED_SHARE if data.mirrors else 0.0

    def __len__(self) -> int:
        return len(self.data)

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """Augmented batch: mirrored with probability a half where the survey allows it, with the field's faults
        and noise, devices dropped out."""
        gathers, maps = self.data.gathers[indices], self.data.maps[indices]
        flip = rng.random(len(indices)) < self._mirrored_share
        gathers, maps = gathers.copy(), maps.copy()
        if flip.any():
            gathers[flip], maps[flip] = self.data.mirrored(indices[flip])
        gathers = gathers.astype(np.float32)
        acquisition = self.data.acquisition
        faulty = rng.random(len(indices)) < FAULTY_SHARE
        sample_s = acquisition.dt_s * self.companding.thin
        gathers[faulty] = add_faults(gathers[faulty], acquisition, sample_s, rng)
        mask = drop_devices(len(indices), acquisition.n_devices, rng, self._drop_out_share)
        inputs = self._inputs(add_noise(gathers, rng, noise_levels(self.companding)), mask)
        if self._ordered is not None:
            inputs["values"], inputs["bits"] = draw_rates(len(mask), mask.shape[1], self._ordered, rng)
        return inputs, maps[..., None]

    def plain(self, indices: np.ndarray) -> tuple[dict, np.ndarray]:
        """The batch as it is, all devices heard, at the full rate."""
        mask = np.ones((len(indices), self.data.acquisition.n_devices), np.float32)
        return self._inputs(self.data.gathers[indices], mask), self.data.maps[indices][..., None]

    def _inputs(self, gathers: np.ndarray, mask: np.ndarray) -> dict:
        parts = device_parts(gathers, self.data.acquisition, self.companding)
        inputs = {"parts": parts, "mask": mask}
        if self._ordered is not None:
            inputs["values"], inputs["bits"] = whole(len(mask), mask.shape[1], self._ordered)
        return inputs


def noise_levels(companding: Companding) -> tuple[float, float]:
    """Least and greatest level of training noise on gathers of that companding.

    Amplitudes go with the square of a survey's cells, and so must the noise: the levels are multiplied by the loudest
    sample that the companding spans, over that of the released models, so that for these they are ``NOISE_MIN`` and
    ``NOISE_MAX`` (within 0.01 %). Other training sets of the benchmark's survey measure another peak, and so noise a
    little louder or quieter.
    """
    times = math.sinh(companding.c) / companding.k / BENCHMARK_PEAK
    return NOISE_MIN * times, NOISE_MAX * times


def add_noise(
    gathers: np.ndarray, rng: np.random.Generator, levels: tuple[float, float] = (NOISE_MIN, NOISE_MAX)
) -> np.ndarray:
    """White noise on a share of thinned gathers ``(n, T', R, S)`` float32, its level log-uniform in ``levels``."""
    low, high = np.log(levels)
    noisy = gathers.copy()
    for row in np.flatnonzero(rng.random(len(gathers)) < NOISE_SHARE):
        level = np.exp(rng.uniform(low, high))
        noisy[row] += level * rng.standard_normal(gathers.shape[1:], dtype=np.float32)
    return noisy


def drop_devices(
    n: int, n_devices: int, rng: np.random.Generator, share: float = DROP_OUT_SHARE
) -> np.ndarray:
    """Masks ``(n, n_devices)`` float32: mostly ones; ``share`` of the rows lack 1 .. n_devices - 1 devices."""
    mask = np.ones((n, n_devices), np.float32)
    for row in np.flatnonzero(rng.random(n) < share):
        if n_devices > 1:
            # One missing device is the common case in the field; more get rarer.
            missing = min(int(rng.geometric(0.5)), n_devices - 1)
            mask[row, rng.choice(n_devices, missing, replace=False)] = 0.0
    return mask


class InversionNetBatches:
    """Whole gathers, log-transformed and scaled to [-1, 1] by the training set's range.

    Samples are read from the memory-mapped OpenFWI files batch by batch: raw gathers of a large set
    do not fit into memory.
    """

    def __init__(self, pairs: list[OpenFWIPair], data: ThinnedSet, log_range: tuple[float, float]) -> None:
        self.data = data
        self.log_range = log_range
        self._order = data.acquisition.mirror_order()
        self._mirrored_share = MIRRORED_SHARE if data.mirrors else 0.0
        # Each file is opened once: a memory-map holds a file handle, and a large set has many samples.
        self._rows = [
            (gathers, twins, i)
            for gathers, twins in ((pair.gathers(), pair.twins()) for pair in pairs)
            for i in range(len(gathers))
        ]

    def __len__(self) -> int:
        return len(self.data)

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        flip = rng.random(len(indices)) < self._mirrored_share
        gathers = np.stack(
            [self._mirrored(i) if f else self._plain(i) for i, f in zip(indices, flip, strict=True)]
        )
        maps = self.data.maps[indices]
        maps[flip] = maps[flip][:, :, ::-1]
        return log_scaled(gathers, self.log_range), maps[..., None]

    def _plain(self, index: int) -> np.ndarray:
        gathers, _, row = self._rows[index]
        return np.asarray(gathers[row])

    def _mirrored(self, index: int) -> np.ndarray:
        assert self._order is not None
        _, twins, row = self._rows[index]
        shots, receivers = self._order
        gather = self._plain(index)
        if twins is not None:
            gather = np.concatenate([gather, twins[row]])
        return gather[shots][:, :, receivers]

    def plain(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gathers = np.stack([self._plain(i) for i in indices])
        return log_scaled(gathers, self.log_range), self.data.maps[indices][..., None]


def log_scaled(gathers: np.ndarray, log_range: Sequence[float]) -> np.ndarray:
    """The benchmark's input: ``(n, S, T, R)`` raw -> ``(n, T, R, S)`` in about [-1, 1]."""
    scaled = scale_gather(gathers.astype(np.float32), log_range)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1), dtype=np.float32)
