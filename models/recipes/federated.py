"""The federated baseline: every device predicts a whole map; the centre averages the maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from firmware_py.inference.companding import Companding
from models.data.batches import EpicBatches
from models.data.gathers import DecimatedSet
from models.errors import TrainingError
from models.evaluation.macs import count_macs
from models.networks.federated import LAYOUT, Rounds, build_federated
from models.recipes.base import Account, Recipe, describe_companding, fitting
from models.training.request import Setting, TrainRequest
from models.training.run_config import RunConfig
from physics.acquisition import Acquisition

FLOAT16_BYTES = 2


class Federated(Recipe):
    kind = "federated"
    simulates: ClassVar[bool] = False

    def validate(self, request: TrainRequest) -> None:
        super().validate(request)
        if request.start_from is not None:
            raise TrainingError(
                "train: a federated run begins with weights of its own; leave out --start-from"
            )

    def plan(
        self, request: TrainRequest, acquisition: Acquisition, found: RunConfig | None
    ) -> dict[str, dict | None]:
        with fitting():
            LAYOUT.check_map(acquisition)
        return {"encoder": None, "decoder": None}

    def describe(self, request: TrainRequest, setting: Setting, found: RunConfig | None) -> dict[str, Any]:
        return {"companding": describe_companding(request, setting, found), "log_range": None}

    def build(
        self, config: RunConfig, acquisition: Acquisition, quantised: bool = False, nested: bool = False
    ) -> tuple[keras.Model, dict[str, keras.Model]]:
        with fitting():
            network, local = build_federated(acquisition, acquisition.n_time // config.thin)
        return network, {"local": local}

    def make_batches(self, config: RunConfig, decimated: DecimatedSet, nested: bool = False) -> EpicBatches:
        assert config.companding
        return EpicBatches(decimated, Companding.from_dict(config.companding), drop_out_share=0.0)

    def make_learner(self, network: keras.Model, parts: dict[str, keras.Model]) -> Callable:
        return Rounds(network, parts["local"])

    def account(self, parts: dict[str, keras.Model], acquisition: Acquisition) -> Account:
        n_bytes = acquisition.n_devices * FLOAT16_BYTES * acquisition.n_depth * acquisition.n_width
        return Account(n_bytes, count_macs(parts["local"]))
