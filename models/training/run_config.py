"""Configuration of a run folder (``config.json``), and the networks and batches built from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from models.errors import TrainingError
from physics.files.atomic import atomic_write


@dataclass(frozen=True)
class RunConfig:
    """Content of a run folder's ``config.json``."""

    kind: str
    data: list[str]
    acquisition: dict
    budget: dict
    thin: int
    companding: dict | None
    encoder: dict | None
    decoder: dict | None
    log_range: list[float] | None
    without: str | None = None
    # Samples per family modelled on the accelerator; ``data`` then holds the first of them.
    simulated: int | None = None
    # ``data``, ``simulated`` and ``drawn`` of earlier training stages, of this run or of the runs that it started from.
    before: list[dict] = field(default_factory=list)
    # Family, seed, first and last number of the samples that `epic data generate` drew (``models.data.held_out``).
    drawn: list[list] = field(default_factory=list)

    def stages(self) -> list[dict]:
        """Return ``data``, ``simulated`` and ``drawn`` of all training that led to the run's networks."""
        own = {"data": self.data, "simulated": self.simulated, "drawn": self.drawn}
        return [*(stage for stage in self.before if stage != own), own]


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Build networks that compute in ``precision``; their weights are always float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def read_config(run: Path) -> RunConfig:
    """Read the configuration of a run folder. Raises ``TrainingError`` if it is missing or damaged."""
    path = run / "config.json"
    if not path.exists():
        raise TrainingError(f"{path}: not found; expected a run folder as `epic train` writes it")
    try:
        return RunConfig(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not the configuration of a run ({error}); copy the run again") from None
