"""Model the latents that devices would send for a velocity map: wave equation, companding, float encoder.

Comparing them with the received latents checks a map at no cost in bytes. The encoder is differentiable Keras; its
gradient with respect to the gather meets the wave equation's adjoint (full-waveform inversion from latents).
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from firmware_py.inference.companding import Companding
from physics.acquisition import Acquisition
from physics.modelling import model_gathers


class LatentModel:
    """Model latents with the float Keras ``encoder`` of a survey's devices.

    ``spread (latent,)`` is the standard deviation of each value over training gathers. Latents are compared in this
    unit.
    """

    def __init__(
        self, encoder: keras.Model, companding: Companding, acquisition: Acquisition, spread: np.ndarray
    ) -> None:
        self.acquisition = acquisition
        self.spread = spread.astype(np.float32)
        self._encoder = encoder
        self._companding = companding
        self._receivers = acquisition.padded_device_receivers()

    def latents(self, velocity_mps: np.ndarray) -> np.ndarray:
        """Return the latents of a map ``(nz, nx)`` in m/s: ``(n_devices, latent)`` float32."""
        return np.asarray(self.encode(model_gathers(velocity_mps[None, None], self.acquisition)[0]))

    def encode(self, gather):
        """Return the latents ``(n_devices, latent)`` of a gather ``(S, T, R)``. Traceable."""
        companded = ops.pad(companded_samples(gather, self._companding), ((0, 0), (0, 0), (0, 1)))
        parts = ops.take(companded, self._receivers, axis=2)
        return self._encoder(ops.transpose(parts, (2, 1, 3, 0)), training=False)

    def distance(self, latents, received, present):
        """Return the RMS difference of latents in units of ``spread``, over the devices ``present (n_devices,)``.

        0 is a perfect match. Latents of unrelated gathers are about 1.4 apart. Traceable.
        """
        square = ops.mean(ops.square((latents - received) / self.spread), axis=1)
        weight = ops.cast(present, "float32")
        # The square root has no gradient at zero.
        return ops.sqrt(ops.sum(square * weight) / ops.sum(weight) + 1e-12)


def companded_samples(gather, companding: Companding):
    """Average every ``thin`` samples and compand with ``asinh(k x) / c``. Traceable.

    ``(S, T, R)`` -> ``(S, T // thin, R)``.
    """
    n_sources, n_time, n_receivers = gather.shape
    n_decimated = n_time // companding.thin
    whole = gather[:, : n_decimated * companding.thin]
    blocks = ops.reshape(whole, (n_sources, n_decimated, companding.thin, n_receivers))
    return ops.arcsinh(companding.k * ops.mean(blocks, axis=2)) / companding.c
