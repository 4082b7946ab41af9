"""Make batches of training data: one class for EPIC, one for the centralised baseline.

Both see the same samples with the same mirror augmentation. EPIC also trains with device dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_py.inference.companding import Companding
from models.data.field_augmentation import AUGMENTED_SHARE, augment_field
from models.data.gathers import DecimatedSet, device_parts
from models.networks.nested_latent import draw_rates, whole
from physics.files.openfwi_files import OpenFWIPair
from physics.normalise import scale_gather

# Share of samples trained with devices missing, so that any subset decodes.
DROP_OUT_SHARE = 0.33
# Greatest noise level on decimated samples: 60 dB below the direct wave of a benchmark gather. Half of the samples get
# noise. It keeps the encoder from using signals too weak for any field recording.
NOISE_SHARE = 0.5
NOISE_MIN, NOISE_MAX = 1e-3, 5e-2
# Largest decimated sample in the companding range of the released models, sinh(c) / k. The noise levels refer to it.
BENCHMARK_PEAK = 49.48


# Share of mirrored samples, where the survey and the data allow mirroring.
MIRRORED_SHARE = 0.5


@dataclass(frozen=True)
class TrainingData:
    """Batches, and the indices ``(n,)`` of the samples to train on and of the validation set, which may be empty.

    ``batches`` has ``training(indices, rng)``, ``plain(indices)`` and ``data``.
    """

    batches: Any
    training: np.ndarray
    validation: np.ndarray


class EpicBatches:
    """Make companded device parts and a mask of the devices present.

    With a nested latent of ``nested`` values, the batches also hold the devices' rates; see
    ``models.networks.network.build_network``. A share ``drop_out_share`` of the training samples lacks devices.
    """

    def __init__(
        self,
        data: DecimatedSet,
        companding: Companding,
        nested: int | None = None,
        drop_out_share: float = DROP_OUT_SHARE,
    ) -> None:
        self.data = data
        self.companding = companding
        self._nested = nested
        self._drop_out_share = drop_out_share
        self._mirrored_share = MIRRORED_SHARE if data.mirrors else 0.0

    def __len__(self) -> int:
        return len(self.data)

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """Return an augmented batch: mirroring, field augmentation, noise and device dropout.

        Samples are mirrored with probability 0.5 where the survey allows it.
        """
        gathers, maps = self.data.gathers[indices], self.data.maps[indices]
        flip = rng.random(len(indices)) < self._mirrored_share
        gathers, maps = gathers.copy(), maps.copy()
        if flip.any():
            gathers[flip], maps[flip] = self.data.mirrored(indices[flip])
        gathers = gathers.astype(np.float32)
        acquisition = self.data.acquisition
        augmented = rng.random(len(indices)) < AUGMENTED_SHARE
        sample_s = acquisition.dt_s * self.companding.thin
        gathers[augmented] = augment_field(gathers[augmented], acquisition, sample_s, rng)
        mask = drop_devices(len(indices), acquisition.n_devices, rng, self._drop_out_share)
        inputs = self._inputs(add_noise(gathers, rng, noise_levels(self.companding)), mask)
        if self._nested is not None:
            inputs["values"], inputs["bits"] = draw_rates(len(mask), mask.shape[1], self._nested, rng)
        return inputs, maps[..., None]

    def plain(self, indices: np.ndarray, reduced: bool = False) -> tuple[dict, np.ndarray]:
        """Return the batch without augmentation and with all devices present.

        Args:
            reduced: Draw rates as in training, the same ones at each call. Default: the full rate.
        """
        mask = np.ones((len(indices), self.data.acquisition.n_devices), np.float32)
        inputs = self._inputs(self.data.gathers[indices], mask)
        if reduced and self._nested is not None:
            rng = np.random.default_rng(0)
            inputs["values"], inputs["bits"] = draw_rates(len(mask), mask.shape[1], self._nested, rng)
        return inputs, self.data.maps[indices][..., None]

    def _inputs(self, gathers: np.ndarray, mask: np.ndarray) -> dict:
        parts = device_parts(gathers, self.data.acquisition, self.companding)
        inputs = {"parts": parts, "mask": mask}
        if self._nested is not None:
            inputs["values"], inputs["bits"] = whole(len(mask), mask.shape[1], self._nested)
        return inputs


def noise_levels(companding: Companding) -> tuple[float, float]:
    """Return the least and greatest level of training noise for a companding.

    Amplitudes scale with the square of the cell size, so the noise must too. The levels are multiplied by the largest
    sample of this companding's range, divided by that of the released models. For the released models they equal
    ``NOISE_MIN`` and ``NOISE_MAX`` within 0.01 %. Other training sets of the benchmark's survey have a slightly
    different peak, and so slightly different noise.
    """
    times = math.sinh(companding.c) / companding.k / BENCHMARK_PEAK
    return NOISE_MIN * times, NOISE_MAX * times


def add_noise(
    gathers: np.ndarray, rng: np.random.Generator, levels: tuple[float, float] = (NOISE_MIN, NOISE_MAX)
) -> np.ndarray:
    """Add white noise to a share of decimated gathers.

    Args:
        gathers: ``(n, T', R, S)`` float32.
        levels: Least and greatest noise level; each sample's level is log-uniform between them.
    """
    low, high = np.log(levels)
    noisy = gathers.copy()
    for row in np.flatnonzero(rng.random(len(gathers)) < NOISE_SHARE):
        level = np.exp(rng.uniform(low, high))
        noisy[row] += level * rng.standard_normal(gathers.shape[1:], dtype=np.float32)
    return noisy


def drop_devices(
    n: int, n_devices: int, rng: np.random.Generator, share: float = DROP_OUT_SHARE
) -> np.ndarray:
    """Return device masks ``(n, n_devices)`` float32; ``share`` of the rows lacks 1 to n_devices - 1 devices."""
    mask = np.ones((n, n_devices), np.float32)
    for row in np.flatnonzero(rng.random(n) < share):
        if n_devices > 1:
            # One missing device is the common case in the field; larger numbers are rarer.
            missing = min(int(rng.geometric(0.5)), n_devices - 1)
            mask[row, rng.choice(n_devices, missing, replace=False)] = 0.0
    return mask


class InversionNetBatches:
    """Make batches of whole gathers, log-transformed and scaled to [-1, 1] by the training set's range.

    Samples are read batch by batch from the memory-mapped OpenFWI files, because the raw gathers of a large set do not
    fit into memory.
    """

    def __init__(self, pairs: list[OpenFWIPair], data: DecimatedSet, log_range: tuple[float, float]) -> None:
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
    """Apply the benchmark's input transform: raw ``(n, S, T, R)`` -> ``(n, T, R, S)`` in about [-1, 1]."""
    scaled = scale_gather(gathers.astype(np.float32), log_range)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1), dtype=np.float32)
