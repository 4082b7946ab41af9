"""Split inference: the devices run the first blocks of a trained InversionNet and send int8 activations."""

from __future__ import annotations

import keras
import numpy as np

from models.data.gathers import split_to_devices
from models.networks.inversionnet import build_central_half, build_device_half, copy_weights
from physics.acquisition import Acquisition

STEPS = 255


class SplitInversionNet:
    """Split ``network`` (``models.networks.inversionnet``, published layout) between devices and centre.

    Only the sent activations are rounded. The devices compute in float, which favours this baseline.
    """

    def __init__(self, network: keras.Model, acquisition: Acquisition) -> None:
        self.device, self._centre = build_device_half(acquisition), build_central_half(acquisition)
        self._acquisition = acquisition
        for half in (self.device, self._centre):
            copy_weights(network, half)

    @property
    def bytes_per_device(self) -> int:
        """Return the payload of one event: one byte per activation, plus the float32 range."""
        return int(np.prod(self.device.output_shape[1:])) + 8

    def predict_on_batch(self, gathers: np.ndarray) -> np.ndarray:
        """Predict maps: ``gathers (n, n_time, n_receivers, n_sources)`` as for InversionNet -> ``(n, nz, nx, 1)``."""
        parts = split_to_devices(gathers, self._acquisition)
        n_time, _, channels = self.device.output_shape[1:]
        inner = np.zeros((len(gathers), n_time, gathers.shape[2], channels), np.float32)
        for device, receivers in enumerate(self._acquisition.device_receivers):
            activations = np.asarray(self.device.predict_on_batch(parts[:, device]), np.float32)
            inner[:, :, list(receivers)] = as_sent(activations)[:, :, : len(receivers)]
        return np.asarray(self._centre.predict_on_batch(inner))


def as_sent(activations: np.ndarray) -> np.ndarray:
    """Round ``(n, ...)`` float32 to 256 steps of each sample's own range."""
    axes = tuple(range(1, activations.ndim))
    low, high = activations.min(axis=axes, keepdims=True), activations.max(axis=axes, keepdims=True)
    step = np.maximum((high - low) / STEPS, np.float32(1e-12))
    return low + np.rint((activations - low) / step) * step
