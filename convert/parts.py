"""Compand the encoder inputs a few gathers at a time.

In float32, the parts of a gather take twice the memory of the decimated gather, and six times during companding. As
int8 codes they take half of it. A large set is therefore companded in turns and kept as codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_py.inference.companding import Companding, quantise
from models.data.gathers import PARTS_AT_ONCE, device_parts
from physics.acquisition import Acquisition


@dataclass(frozen=True)
class Parts:
    """Parts of decimated ``gathers (n, T', R, S)``, device by device.

    Behaves like an array ``(n * n_devices, T', width, S)`` float32 that is indexed along its first axis by a slice or
    an index array.
    """

    gathers: np.ndarray
    acquisition: Acquisition
    companding: Companding

    def __len__(self) -> int:
        return len(self.gathers) * self.acquisition.n_devices

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[which]
        rows, place = np.unique(numbers // self.acquisition.n_devices, return_inverse=True)
        parts = device_parts(self.gathers[rows], self.acquisition, self.companding)
        return parts[place, numbers % self.acquisition.n_devices]

    def codes(self, scale: float, zero_point: int) -> np.ndarray:
        """Return all parts as the encoder's int8 input ``(n * n_devices, T', width, S)``."""
        step = PARTS_AT_ONCE * self.acquisition.n_devices
        each = [quantise(self[i : i + step], scale, zero_point) for i in range(0, len(self), step)]
        return np.concatenate(each) if each else quantise(self[:0], scale, zero_point)
