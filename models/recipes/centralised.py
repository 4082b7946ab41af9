"""InversionNet and its deeper forms: one network at the centre, with whole gathers as input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from models.data.batches import InversionNetBatches
from models.data.gathers import DecimatedSet
from models.data.simulated import Simulated, ValidationWhole
from models.networks.inversionnet import LAYOUTS, build_inversionnet
from models.networks.network import map_mae
from models.recipes.base import Account, Recipe, fitting
from models.training.budget import Budget
from models.training.request import Setting, TrainRequest
from models.training.run_config import RunConfig
from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs

FLOAT32_BYTES = 4


class Centralised(Recipe):
    central: ClassVar[bool] = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def plan(
        self, request: TrainRequest, acquisition: Acquisition, found: RunConfig | None
    ) -> dict[str, dict | None]:
        with fitting():
            LAYOUTS[self.kind].check_map(acquisition)
        return {"encoder": None, "decoder": None}

    def describe(self, request: TrainRequest, setting: Setting, found: RunConfig | None) -> dict[str, Any]:
        return {"companding": None, "log_range": found.log_range if found else setting.log_range()}

    def build(
        self, config: RunConfig, acquisition: Acquisition, quantised: bool = False, nested: bool = False
    ) -> tuple[keras.Model, dict[str, keras.Model]]:
        with fitting():
            network = build_inversionnet(acquisition, LAYOUTS[self.kind])
        return network, {self.kind: network}

    def make_batches(
        self, config: RunConfig, decimated: DecimatedSet, nested: bool = False
    ) -> InversionNetBatches:
        """Return batches of whole gathers, read from the files of ``config.data``."""
        pairs = [pair for folder in config.data for pair in find_pairs(Path(folder), decimated.acquisition)]
        low, high = config.log_range or (0.0, 1.0)
        return InversionNetBatches(pairs, decimated, (low, high))

    def simulated_batches(
        self, config: RunConfig, simulated: Simulated, nested: bool = False
    ) -> ValidationWhole:
        assert config.log_range
        return ValidationWhole(simulated, config.log_range)

    def prepare_on_device(self, config: RunConfig, budget: Budget) -> tuple[Any, Any]:
        from models.training.on_device import prepare_whole

        assert config.log_range
        return prepare_whole(Acquisition.from_dict(config.acquisition), config.log_range), map_mae

    def account(self, parts: dict[str, keras.Model], acquisition: Acquisition) -> Account:
        return Account(FLOAT32_BYTES * int(np.prod(acquisition.gather_shape)), 0)
