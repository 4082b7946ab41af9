"""Split inference: the first blocks of a trained InversionNet on the devices, their activations sent in int8."""

from __future__ import annotations

import keras
import numpy as np

from models.data.gathers import split_to_devices
from models.networks.inversionnet import build_central_half, build_device_half, copy_weights
from physics.acquisition import Acquisition

STEPS = 255


class SplitInversionNet:
    """``network`` of ``models.networks.inversionnet``, in its published layout, between devices and centre.

    Only what is sent is rounded: the devices compute in float, which flatters them.
    """

    def __init__(self, network: keras.Model, acquisition: Acquisition) -> None:
        self.device, self._centre = build_device_half(acquisition), build_central_half(acquisition)
        self._acquisition = acquisition
        for half in (self.device, self._centre):
            copy_weights(network, half)

    @property
    def bytes_per_device(self) -> int:
        """Of one event: a byte an activation, and the float32 range of them."""
        return int(np.prod(self.device.output_shape[1:])) + 8

    def predict_on_batch(self, gathers: np.ndarray) -> np.ndarray:
        """``gathers (n, n_time, n_receivers, n_sources)`` as InversionNet takes them -> ``(n, nz, nx, 1)``."""
        parts = split_to_devices(gathers, self._acquisition)
        n_time, _, channels = self.device.output_shape[1:]
        inner = np.zeros((len(gathers), n_time, gathers.shape[2], channels), np.float32)
        for device, receivers in enumerate(self._acquisition.device_receivers):
            activations = np.asarray(self.device.predict_on_batch(parts[:, device]), np.float32)
            inner[:, :, list(receivers)] = as_sent(activations)[:, :, : len(receivers)]
        return np.asarray(self._centre.predict_on_batch(inner))


def as_sent(activations: np.ndarray) -> np.ndarray:
    """``(n, ...)`` float32 rounded to 256 steps of each sample's own range."""
    axes = tuple(range(1, activations.ndim))
    low, high = activations.min(axis=axes, keepdims=True), activations.max(axis=axes, keepdims=True)
    step = np.maximum((high - low) / STEPS, np.float32(1e-12))
    return low + np.rint((activations - low) / step) * step
