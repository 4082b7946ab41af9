"""Federated baseline: every device predicts the whole map from its own receivers; the centre averages the maps.

One model serves all devices. It is trained by federated averaging (McMahan et al. 2017, arXiv 1602.05629). In each
round, every device starts from the shared weights and takes a few steps on its own recordings. The centre averages the
resulting weights. Recordings never leave a device, not even in training; maps do.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from models.networks.inversionnet import Layout, build_from_layout
from physics.acquisition import Acquisition

# Local steps per round, each on a part of the round's samples.
LOCAL_STEPS = 4
# An InversionNet for decimated recordings of a few receivers: half the channels in the encoder, a quarter in the
# decoder.
LAYOUT = Layout((16, 32), (64, 128), 128, ((128, 5, 0), (64, 4, 1), (32, 4, 1), (16, 4, 1), (8, 4, 1)))


def build_federated(acquisition: Acquisition, n_time: int) -> tuple[keras.Model, keras.Model]:
    """Build ``(network, local model)`` with shared weights.

    The network takes ``parts (batch, n_devices, n_time, width, n_sources)`` and ``mask (batch, n_devices)``. It returns
    ``(batch, nz, nx, 1)``, the mean of the normalised maps of the devices present. The local model predicts one map
    from one part.

    Raises:
        ValueError: The network cannot output the survey's map size.
    """
    shape = (n_time, acquisition.max_device_receivers, acquisition.n_sources)
    local = build_from_layout(LAYOUT, shape, acquisition, "local")
    return _mean_of(local, acquisition.n_devices), local


def _mean_of(local: keras.Model, n_devices: int) -> keras.Model:
    shape, map_shape = local.input_shape[1:], local.output_shape[1:]
    parts = keras.Input((n_devices, *shape), name="parts")
    mask = keras.Input((n_devices,), name="mask")
    maps = ops.reshape(local(ops.reshape(parts, (-1, *shape))), (-1, n_devices, *map_shape))
    weights = (mask / ops.sum(mask, axis=1, keepdims=True))[:, :, None, None, None]
    predicted = ops.sum(ops.cast(maps, "float32") * ops.cast(weights, "float32"), axis=1)
    return keras.Model({"parts": parts, "mask": mask}, predicted, name="federated")


class Rounds:
    """Run one round of federated averaging per batch; called as by ``models.training.training.train``.

    ``network``, compiled, and ``local`` are from ``build_federated``. The optimiser's moments are averaged like the
    weights (Yu, Jin and Yang 2019, arXiv 1905.03817), so devices keep no state between rounds.
    """

    def __init__(self, network: keras.Model, local: keras.Model) -> None:
        self._alone = _mean_of(local, 1)
        optimizer = network.optimizer
        optimizer.build(network.trainable_variables)
        self._alone.compile(optimizer, loss="mae", jit_compile=network.jit_compile)
        self._shared = [*network.variables, *optimizer.variables]

    def __call__(self, inputs: dict[str, np.ndarray], maps: np.ndarray) -> float:
        """Run one round on the ``inputs`` and ``maps`` of a batch; return the devices' mean loss."""
        before = [np.array(variable) for variable in self._shared]
        total: list[Any] = [np.zeros_like(value) for value in before]
        losses = []
        n_devices = inputs["parts"].shape[1]
        for device in range(n_devices):
            for variable, value in zip(self._shared, before, strict=True):
                variable.assign(value)
            for rows in np.array_split(np.arange(len(maps)), min(LOCAL_STEPS, len(maps))):
                own = {
                    "parts": inputs["parts"][rows, device : device + 1],
                    "mask": np.ones((len(rows), 1), "f"),
                }
                losses.append(float(self._alone.train_on_batch(own, maps[rows], return_dict=True)["loss"]))
                self._alone.reset_metrics()
            total = [t + np.array(variable) for t, variable in zip(total, self._shared, strict=True)]
        for variable, value in zip(self._shared, total, strict=True):
            # Counters are equal on all devices, so averaging keeps them.
            variable.assign((value / n_devices).astype(value.dtype))
        return float(np.mean(losses))
