"""Parameters of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from models.data.simulated import Simulated
from models.training.budget import Budget
from models.training.warm_start import Origin
from physics.acquisition import Acquisition


@dataclass(frozen=True)
class TrainRequest:
    """One run of a network.

    Attributes:
        kind: Name of a recipe (``models.recipes.RECIPES``).
        data: OpenFWI folders; one folder if ``source`` is given.
        run: Run folder. A run that holds a checkpoint is resumed. Its configuration must then be the same; budget and
            data may grow.
        budget: How long and how to train.
        decimation: Samples averaged into one before encoding.
        encoder: Preset of ``models.networks.encoder``. Default: that of the run being resumed, else "small".
        decoder: Preset of ``models.networks.fusion``; the same default.
        start_from: Earlier run or, of EPIC, released model, whose weights and input scaling a new run begins with.
        ablate: Part of EPIC to leave out, for comparison.
        acquisition: Default: that of the run being resumed, else what ``data`` were made for.
        tensorboard: Write event files for TensorBoard to ``run/tensorboard``.
        source: Makes the samples instead of reading them. They continue the sequence of ``data``.
    """

    kind: str
    data: list[Path]
    run: Path
    budget: Budget
    decimation: int = 10
    encoder: str | None = None
    decoder: str | None = None
    start_from: Path | None = None
    ablate: str | None = None
    acquisition: Acquisition | None = None
    tensorboard: bool = False
    source: Callable[[], Simulated] | None = None


@dataclass(frozen=True)
class Setting:
    """Initial state of a run: survey, weights and data statistics.

    Attributes:
        log_range: Function that measures the range of log-transformed gathers, for centralised networks.
        origin: Networks that an EPIC run starts from.
        simulated: Simulated samples per family; None if samples are read from files.
        before: Stages of training that led to the weights (``RunConfig.stages``).
    """

    acquisition: Acquisition
    log_range: Callable[[], list[float]]
    origin: Origin | None = None
    simulated: int | None = None
    before: list[dict] = field(default_factory=list)
