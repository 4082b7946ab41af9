"""Settings of ``epic train``: from the command line, from a TOML file, or from the run to be resumed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from firmware_py.runtime.toml_keys import unknown_key
from models.errors import TrainingError
from models.recipes import recipe_of
from models.training.budget import Budget
from models.training.request import TrainRequest
from models.training.run_config import read_config
from models.training.training import has_checkpoint
from physics.files.survey_file import read_survey

# Options that may be given with --resume. All others are the run's own.
WITH_RESUME = ("minutes", "epochs", "patience", "threads", "tensorboard", "data")
PATHS = ("data", "out", "start_from", "survey")


class Settings(BaseModel):
    """The keys of a training file. All but ``kind`` and ``weight_decay`` are options of ``epic train`` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    data: list[Path]
    out: Path
    minutes: float | None = None
    epochs: float | None = None
    patience: float | None = None
    batch: int = 32
    learning_rate: float | None = None
    weight_decay: float = 1e-3
    optimiser: str | None = None
    precision: str = "float32"
    encoder: str | None = None
    decoder: str | None = None
    decimation: int = 10
    survey: Path | None = None
    simulate: int | None = None
    start_from: Path | None = None
    quantised: bool = False
    nested: bool = False
    ablate: str | None = None
    seed: int = 0
    threads: int = 0
    tensorboard: bool = False

    def request(self) -> TrainRequest:
        """Return the training run; a simulated one still lacks its source.

        Raises:
            TrainingError: The kind, the budget, or a combination of settings is not possible.
            AcquisitionError: The survey cannot be read.
        """
        if self.simulate is not None and self.survey is not None:
            raise TrainingError(
                "train: --simulate takes the survey of --data, whose sequence it continues; leave out --survey"
            )
        optimiser = self.optimiser or recipe_of(self.kind).optimiser
        learning_rate = self.learning_rate
        if learning_rate is None:
            learning_rate = 3e-3 if optimiser == "muon" else 1.5e-3
        budget = Budget(
            batch=self.batch,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            minutes=self.minutes,
            epochs=self.epochs,
            seed=self.seed,
            precision=self.precision,
            quantised=self.quantised,
            ordered=self.nested,
            optimiser=optimiser,
            patience=self.patience,
        )
        return TrainRequest(
            self.kind,
            self.data,
            self.out,
            budget,
            decimation=self.decimation,
            encoder=self.encoder,
            decoder=self.decoder,
            start_from=self.start_from,
            ablate=self.ablate,
            acquisition=read_survey(self.survey) if self.survey else None,
            tensorboard=self.tensorboard,
        )


def read_settings(given: dict[str, Any], config: Path | None = None, resume: Path | None = None) -> Settings:
    """Return the settings of a run.

    Args:
        given: Options of the command line; they override the file. None and False are not given.
        config: TOML file with keys of ``Settings``; its relative paths are relative to its folder.
        resume: Run folder, whose own settings are taken.

    Raises:
        TrainingError: A key is unknown, missing or of a wrong type, or the run cannot be resumed.
    """
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    base: dict[str, Any] = {}
    if resume is not None:
        base = _resumed(resume, given, config)
    elif config is not None:
        base = _read_file(config)
    if "minutes" in given or "epochs" in given:
        base = {name: value for name, value in base.items() if name not in ("minutes", "epochs")}
    try:
        return Settings(**(base | given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = f"{config}: {name}" if config and name not in given else f"train: {name}"
        if first["type"] == "missing":
            raise TrainingError(
                f"{where}: missing; give {'KIND' if name == 'kind' else f'--{name}'}, or {name} in a file with --config"
            ) from None
        raise TrainingError(f"{where}: {first['msg']}, got {first['input']!r}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        content = tomllib.loads(text)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror}); expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: expected TOML ({error})") from None
    for key in content:
        if key not in Settings.model_fields:
            raise TrainingError(f"{path}: {unknown_key(text, '', key, Settings.model_fields)}")
    folder = path.resolve().parent
    for key in PATHS:
        value = content.get(key)
        if isinstance(value, str):
            content[key] = folder / value
        elif isinstance(value, list):
            content[key] = [folder / name if isinstance(name, str) else name for name in value]
    return content


def _resumed(run: Path, given: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the settings of the run in a folder."""
    others = [name for name in given if name not in WITH_RESUME]
    if config is not None:
        others.append("config")
    if others:
        names = ", ".join("KIND" if name == "kind" else f"--{name.replace('_', '-')}" for name in others)
        raise TrainingError(
            f"train: --resume takes the run's own settings; leave out {names}, or start another run with --out"
        )
    found = read_config(run)
    if not has_checkpoint(run):
        raise TrainingError(f"{run}: holds no checkpoint yet; start it again with its first command")
    fields = Settings.model_fields
    return {name: value for name, value in found.budget.items() if name in fields} | {
        "kind": found.kind,
        "data": found.data,
        "out": run,
        "decimation": found.thin,
        "ablate": found.without,
        "simulate": found.simulated,
        "nested": found.budget.get("ordered", False),
        "optimiser": found.budget.get("optimiser", "adamw"),
    }
