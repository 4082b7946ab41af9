"""What a run learns with: the weights it begins with, its optimiser and loss, what it is fed, on which devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from firmware_py.inference.companding import Companding
from models.data.gathers import ThinnedSet
from models.data.simulated import Simulated, WatchedWhole
from models.errors import TrainingError
from models.networks.inversionnet import LAYOUTS
from models.networks.nested_latent import order_latent
from models.networks.network import map_loss, map_mae
from models.training.muon import Muon
from models.training.run_config import RunConfig, feed
from models.training.training import Budget
from models.training.warm_start import Origin, begin_with, fits_decoder
from physics.acquisition import Acquisition


def begin(
    origin: Origin, parts: dict[str, keras.Model], plain: tuple[dict, np.ndarray], budget: Budget
) -> None:
    """Give a run's networks the weights of ``origin``; ``plain`` is a batch by which statistics are measured anew."""
    seen = plain[0]["parts"]
    seen = seen.reshape(-1, *seen.shape[2:])
    goes_on = fits_decoder(origin, parts["decoder"])
    begin_with(origin if goes_on else replace(origin, decoder={}), parts["encoder"], parts["decoder"], seen)
    if budget.ordered and goes_on:
        order_latent(parts["encoder"], parts["decoder"], seen)


def set_to_learn(network: keras.Model, kind: str, budget: Budget) -> None:
    """Compile a network of ``kind`` with its optimiser and loss."""
    network.compile(
        _optimiser(budget),
        loss=map_loss if kind == "epic" else "mae",
        metrics=[map_mae] if kind == "epic" else [],
        jit_compile=keras.backend.backend() == "jax",
    )


def _optimiser(budget: Budget) -> keras.optimizers.Optimizer:
    decay = {"weight_decay": budget.weight_decay, "clipnorm": 1.0}
    if budget.optimiser == "muon":
        return Muon(budget.learning_rate, adam_weight_decay=budget.weight_decay, **decay)
    return keras.optimizers.AdamW(budget.learning_rate, **decay)


def feed_run(
    config: RunConfig, thinned: ThinnedSet, simulated: Simulated | None, ordered: bool = False
) -> Any:
    """Batches of a run: ``models.training.run_config.feed``, or the watched ones of ``simulated`` as its
    network takes them."""
    if simulated and config.kind in LAYOUTS:
        assert config.log_range
        return WatchedWhole(simulated, config.log_range)
    return feed(config, thinned, ordered)


def on_device(config: RunConfig, network: keras.Model, budget: Budget, shapes: tuple) -> Any:
    """The turn of training steps of a compiled ``network`` on samples of ``shapes``; see
    ``models.training.on_device``."""
    from models.training.on_device import OnDevice, prepare_parts, prepare_whole

    a = Acquisition.from_dict(config.acquisition)
    if config.kind in LAYOUTS:
        assert config.log_range
        prepare, loss = prepare_whole(a, config.log_range), map_mae
    else:
        assert config.companding and config.decoder
        latent = config.decoder["latent"] if budget.ordered else None
        prepare, loss = prepare_parts(a, Companding.from_dict(config.companding), latent), map_loss
    return OnDevice(network, loss, prepare, shapes, budget.batch)


def spread_over_devices(batch: int) -> None:
    """Have each batch of networks built from now on computed by all accelerators of this machine, a share each.

    Keras does so under JAX alone; elsewhere, and with one device, nothing changes. Raises ``TrainingError`` for a
    batch that they cannot share.
    """
    devices = keras.distribution.list_devices() if keras.backend.backend() == "jax" else []
    if len(devices) < 2:
        return
    if batch % len(devices):
        raise TrainingError(
            f"train: expected a --batch that {len(devices)} devices can share, got {batch}; give a multiple"
        )
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
