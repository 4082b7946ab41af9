"""Devices that a run computes on."""

from __future__ import annotations

from typing import Any

import keras

from models.errors import TrainingError
from models.recipes import recipe_of
from models.training.budget import Budget
from models.training.run_config import RunConfig


def on_device(config: RunConfig, network: keras.Model, budget: Budget, shapes: tuple) -> Any:
    """Set up training steps of a compiled ``network`` on an accelerator; see ``models.training.on_device``.

    Args:
        shapes: Shapes of the shards of samples.
    """
    from models.training.on_device import OnDevice

    prepare, loss = recipe_of(config.kind).prepare_on_device(config, budget)
    return OnDevice(network, loss, prepare, shapes, budget.batch)


def spread_over_devices(batch: int) -> None:
    """Split each batch across all accelerators of this machine, for networks built from now on.

    This needs JAX and more than one device; otherwise nothing changes.

    Raises:
        TrainingError: The batch size is not divisible by the number of devices.
    """
    devices = keras.distribution.list_devices() if keras.backend.backend() == "jax" else []
    if len(devices) < 2:
        return
    if batch % len(devices):
        raise TrainingError(
            f"train: expected a --batch that {len(devices)} devices can share, got {batch}; give a multiple"
        )
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
