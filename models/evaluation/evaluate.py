"""Evaluate trained runs on test data, family by family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.data.gathers import DecimatedSet, load_decimated
from models.data.held_out import check_held_out
from models.errors import TrainingError
from models.evaluation.prediction import predict
from models.evaluation.scores import score
from models.recipes import recipe_of
from models.training.run_config import RunConfig, read_config
from models.training.training import load_network
from physics.acquisition import Acquisition


@dataclass(frozen=True)
class Loaded:
    """A finished run with test data: its complete ``network``, the network's inputs, its saved ``parts`` by name."""

    config: RunConfig
    held_out: DecimatedSet
    network: keras.Model
    batches: Any
    parts: dict[str, keras.Model]


def load_run(run: Path, data: list[Path], missing: tuple[int, ...] = ()) -> Loaded:
    """Load a finished run (float networks, before int8) to predict every sample under ``data``.

    ``missing`` names absent devices (EPIC only).

    Raises:
        TrainingError: The run has no weights, or they are damaged.
        DataError: The data are missing.
    """
    config = check_run(run, data, missing)
    held_out = load_decimated(data, Acquisition.from_dict(config.acquisition), config.thin)
    config = replace(config, data=[str(folder) for folder in data])
    recipe = recipe_of(config.kind)
    network, parts = recipe.build(config, held_out.acquisition)
    batches: Any = recipe.make_batches(config, held_out)
    for name, part in parts.items():
        part.set_weights(load_network(run / f"{name}.keras").get_weights())
    if missing:
        batches = _WithMissing(batches, missing)
    return Loaded(config, held_out, network, batches, parts)


def check_run(run: Path, data: list[Path], missing: tuple[int, ...] = ()) -> RunConfig:
    """Return the configuration of a finished run that can be scored on ``data``, without loading them.

    Raises:
        TrainingError: The run is not finished, was trained on the data, or has no such devices.
    """
    config = read_config(run)
    check_held_out(config, data)
    if not any(run.glob("*.keras")):
        raise TrainingError(f"{run}: the run has not finished; go on with `epic train --resume {run}`")
    n_devices = len(config.acquisition["device_receivers"])
    if missing and (recipe_of(config.kind).central or not set(missing) < set(range(n_devices))):
        raise TrainingError(
            f"evaluate: cannot leave out devices {list(missing)} of {run}, a run of {config.kind} with {n_devices} "
            "devices; choose other devices, and leave at least one"
        )
    return config


def evaluate_run(run: Path, data: list[Path], missing: tuple[int, ...] = ()) -> dict[str, dict[str, float]]:
    """Score the finished run on every sample under ``data``; for arguments and errors see ``load_run``.

    Returns the table of ``models.evaluation.scores.score``.
    """
    found = load_run(run, data, missing)
    indices = np.arange(len(found.held_out))
    return score(predict(found.network, found.batches, indices)[..., 0], found.held_out, indices)


def load_held_out(config: RunConfig, data: list[Path]) -> DecimatedSet:
    """Load the samples under ``data`` for a run of ``config``. Raises ``TrainingError`` if it was trained on them."""
    check_held_out(config, data)
    return load_decimated(data, Acquisition.from_dict(config.acquisition), config.thin)


class _WithMissing:
    """EPIC's batches with some devices always missing."""

    def __init__(self, batches, missing: tuple[int, ...]) -> None:
        self.inner = batches
        self.missing = list(missing)

    def plain(self, indices: np.ndarray):
        inputs, maps = self.inner.plain(indices)
        inputs["mask"][:, self.missing] = 0.0
        return inputs, maps
