"""Base class of the recipes. A ``Recipe`` builds, feeds and compiles one kind of network and accounts for its costs.

``models.training.run`` holds everything that all kinds share. To add a kind, add a module here and a line in
``RECIPES``.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from models.data.companding import choose_companding
from models.data.gathers import DecimatedSet
from models.data.simulated import Simulated
from models.errors import TrainingError
from models.training.budget import Budget
from models.training.muon import Muon
from models.training.request import Setting, TrainRequest
from models.training.run_config import RunConfig, write_json
from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs

COMPANDING_GATHERS = 64


@dataclass(frozen=True)
class Account:
    """Costs of an event: payload bytes of all devices together, multiply-accumulates of one device."""

    bytes_per_event: int
    device_macs: int


class Recipe(ABC):
    """One kind of network.

    Attributes:
        kind: Its name in ``epic train KIND`` and ``config.json``.
        central: True if whole gathers go to the centre, without parts of devices.
        simulates: True if ``--simulate`` can make the samples.
        optimiser: Default of ``--optimiser``.
        loss: Loss, as Keras takes it.
    """

    kind: str
    central: ClassVar[bool] = False
    simulates: ClassVar[bool] = True
    optimiser: ClassVar[str] = "adamw"
    loss: ClassVar[Any] = "mae"

    def validate(self, request: TrainRequest) -> None:
        """Raise ``TrainingError`` for a request that this kind does not support."""
        if request.budget.quantised:
            raise TrainingError(
                "train: quantised training refines a trained EPIC run, whose batch normalisation it keeps; name it "
                "with --start-from"
            )
        if request.budget.ordered:
            raise TrainingError(
                "train: only an EPIC run with attention has nested latents; leave out --nested"
            )
        if request.ablate is not None:
            raise TrainingError(
                f"train: only EPIC can be ablated; got {self.kind} with --ablate {request.ablate!r}"
            )
        self._check_source(request)

    def _check_source(self, request: TrainRequest) -> None:
        """Raise ``TrainingError`` if the samples of this request cannot be simulated."""
        if request.source and not (self.simulates and request.ablate is None and len(request.data) == 1):
            raise TrainingError(
                "train: --simulate trains epic or a centralised network on the sequence of one --data; leave it out"
            )

    @abstractmethod
    def plan(
        self, request: TrainRequest, acquisition: Acquisition, found: RunConfig | None
    ) -> dict[str, dict | None]:
        """Return ``encoder`` and ``decoder`` of ``RunConfig``. Called before data are loaded.

        Args:
            found: Configuration of the run that is resumed, if any.

        Raises:
            TrainingError: ``found`` does not match the request, or the network does not fit the survey.
        """

    @abstractmethod
    def describe(self, request: TrainRequest, setting: Setting, found: RunConfig | None) -> dict[str, Any]:
        """Return ``companding`` and ``log_range`` of ``RunConfig``.

        Args:
            found: Configuration of the run that is resumed, if any.

        Raises:
            TrainingError: ``found`` does not match the request.
        """

    @abstractmethod
    def build(
        self, config: RunConfig, acquisition: Acquisition, quantised: bool = False, nested: bool = False
    ) -> tuple[keras.Model, dict[str, keras.Model]]:
        """Build the network to train, and its parts to save by name.

        ``quantised`` and ``nested`` are described in ``models.networks.network``.
        """

    @abstractmethod
    def make_batches(self, config: RunConfig, decimated: DecimatedSet, nested: bool = False) -> Any:
        """Return batches of samples; see ``models.data.batches``."""

    def simulated_batches(self, config: RunConfig, simulated: Simulated, nested: bool = False) -> Any:
        """Return validation batches for a run on simulated samples."""
        return self.make_batches(config, simulated.validation, nested)

    def compile_model(self, network: keras.Model, budget: Budget) -> None:
        """Compile ``network`` with its optimiser and loss."""
        network.compile(_optimiser(budget), loss=self.loss, jit_compile=keras.backend.backend() == "jax")
        # TensorFlow traces a step twice if the first trace creates the optimiser's variables.
        network.optimizer.build(network.trainable_variables)

    def make_learner(self, network: keras.Model, parts: dict[str, keras.Model]) -> Callable | None:
        """Return a function that replaces the optimiser's training step; None by default."""
        return None

    def prepare_on_device(self, config: RunConfig, budget: Budget) -> tuple[Any, Any]:
        """Return the on-accelerator sample preparation and loss; see ``models.training.on_device``."""
        raise TrainingError(f"train: a {self.kind} run takes no simulated samples; leave out --simulate")

    @abstractmethod
    def account(self, parts: dict[str, keras.Model], acquisition: Acquisition) -> Account:
        """Return the costs of an event with trained ``parts``."""


def describe_companding(request: TrainRequest, setting: Setting, found: RunConfig | None) -> dict | None:
    """Return the companding of a run.

    It is taken from the resumed run, from the networks that the run starts from, or measured on the data.

    Raises:
        TrainingError: The companding was made for another decimation.
    """
    if found:
        companding = found.companding
    elif setting.origin:
        companding = setting.origin.companding.to_dict()
    else:
        companding = _measure_companding(request, setting.acquisition)
    if companding and companding["thin"] != request.decimation:
        raise TrainingError(
            f"train: begins with a network for --decimation {companding['thin']}, not {request.decimation}; give that"
        )
    return companding


def _measure_companding(request: TrainRequest, acquisition: Acquisition) -> dict:
    """Measure the companding on gathers spread over all files of the training set."""
    pairs = [pair for folder in request.data for pair in find_pairs(folder, acquisition)]
    each = max(1, COMPANDING_GATHERS // len(pairs))
    gathers = np.concatenate([np.asarray(pair.gathers()[:each], np.float32) for pair in pairs])
    companding, report = choose_companding(gathers, request.decimation)
    write_json(request.run / "companding.json", report)
    return companding.to_dict()


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Convert the ``ValueError`` of a network that does not fit the survey to a ``TrainingError``."""
    try:
        yield
    except ValueError as error:
        raise TrainingError(str(error)) from None


def _optimiser(budget: Budget) -> keras.optimizers.Optimizer:
    decay = {"weight_decay": budget.weight_decay, "clipnorm": 1.0}
    if budget.optimiser == "muon":
        return Muon(budget.learning_rate, adam_weight_decay=budget.weight_decay, **decay)
    return keras.optimizers.AdamW(budget.learning_rate, **decay)
