"""Watch a training: rows of ``history.jsonl``, the best weights, and the end of progress.

The validation loss decides which weights are best. It is the training's loss on the validation set, without
augmentation. A run with nested latents is measured at its reduced rates too, because it also learns those.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.data.batches import TrainingData
from models.errors import TrainingError
from models.evaluation.prediction import predict
from models.training.budget import Budget, Progress, learning_rate_at
from models.training.run_config import write_json
from physics.files.atomic import atomic_write

# A run of any length has about 50 rows, and a row with each checkpoint.
REPORT_SHARE = 0.02
# Between checkpoints, validation takes at most a tenth of the time.
TRAINING_PER_VALIDATION = 9.0
# Relative difference of two measurements of a loss on one validation set, by another order of additions.
SAME_LOSS = 1e-3
HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Best:
    """The weights with the smallest validation loss so far.

    Attributes:
        compared_from: Epoch at which the validation set last changed; patience counts from there.
    """

    step: int
    epoch: float
    validation_loss: float
    weights: list[np.ndarray]
    compared_from: float = 0.0

    def save(self, network: keras.Model, folder: Path) -> None:
        """Write ``best.weights.h5`` and ``best.json``; the weights of ``network`` stay as they are."""
        current = network.get_weights()
        network.set_weights(self.weights)
        network.save_weights(folder / "best.weights.h5")
        network.set_weights(current)
        write_json(folder / "best.json", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without the weights."""
        return {
            "step": self.step,
            "epoch": round(self.epoch, 3),
            "validation_loss": self.validation_loss,
            "compared_from": round(self.compared_from, 3),
        }


def load_best(network: keras.Model, folder: Path) -> Best | None:
    """Read the best weights of a checkpoint folder; None if it has none. ``network`` stays as it is.

    Raises:
        TrainingError: The files are damaged.
    """
    if not (folder / "best.json").exists():
        return None
    current = network.get_weights()
    try:
        figures = json.loads((folder / "best.json").read_text())
        network.load_weights(folder / "best.weights.h5")
        return Best(**figures, weights=network.get_weights())
    except Exception as error:  # Keras and its HDF5 reader raise many exception types.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(
            f"{folder}: expected best.json and best.weights.h5 of a run, got files that cannot be read ({reason}); "
            "copy the run again"
        ) from None
    finally:
        network.set_weights(current)


class Monitor:
    """Measures a training now and then.

    Attributes:
        best: The best weights so far; None without a validation set.
    """

    def __init__(
        self,
        network: keras.Model,
        data: TrainingData,
        budget: Budget,
        run: Path,
        progress: Progress,
        best: Best | None,
        on_report: Callable[[dict], None] = lambda row: None,
    ) -> None:
        self.best = best
        self._network, self._batches, self._validation = network, data.batches, data.validation
        self._budget, self._history, self._progress = budget, run / HISTORY, progress
        self._on_report = on_report
        self._losses: list[float] = []
        self._step, self._epoch, self._share = progress.step, progress.epoch, progress.share_of(budget)
        self._validation_s = 0.0
        _cut_history(self._history, progress.step)
        if len(data.validation):
            # Compile before the budget's clock starts.
            predict(network, data.batches, data.validation[:1])
            self.best = self._measured_again(best) if best else None
        self._reported = time.monotonic()

    def add(self, loss: float) -> None:
        """Add the training loss of the newest step."""
        self._losses.append(loss)

    @property
    def loss(self) -> float | None:
        """Mean training loss of the newest steps; None if there was none since the last row."""
        return float(np.mean(self._losses[-50:])) if self._losses else None

    @property
    def exhausted(self) -> bool:
        """True if the validation loss has not fallen for the budget's patience, by the last row."""
        patience = self._budget.patience
        if patience is None or self.best is None:
            return False
        return self._epoch - max(self.best.epoch, self.best.compared_from) >= patience

    def due(self) -> bool:
        """Return True if it is time for a row."""
        advanced = self._progress.share_of(self._budget) - self._share >= REPORT_SHARE
        return advanced and time.monotonic() - self._reported >= TRAINING_PER_VALIDATION * self._validation_s

    def report(self) -> None:
        """Append a row to ``history.jsonl`` and keep the weights if they are the best; once a step."""
        progress = self._progress
        if progress.step == self._step:
            return
        started = time.monotonic()
        share = progress.share_of(self._budget)
        row: dict[str, Any] = {
            "step": progress.step,
            "epoch": round(progress.epoch, 3),
            "elapsed_s": round(progress.elapsed_s, 1),
            "core_s": round(progress.core_s, 1),
            "learning_rate": learning_rate_at(share, self._budget.learning_rate),
            "loss": float(np.mean(self._losses)),
        }
        if len(self._validation):
            row |= self._validate()
            if self.best is None or row["validation_loss"] < self.best.validation_loss:
                weights = self._network.get_weights()
                self.best = Best(progress.step, progress.epoch, row["validation_loss"], weights)
        with self._history.open("a") as history:
            history.write(json.dumps(row) + "\n")
        self._on_report(row)
        self._losses = []
        self._step, self._epoch, self._share = progress.step, progress.epoch, share
        self._reported = time.monotonic()
        self._validation_s = self._reported - started

    def _measured_again(self, best: Best) -> Best:
        """Return ``best`` with its loss on the present validation set, which grows with the data of a resumed run."""
        current = self._network.get_weights()
        self._network.set_weights(best.weights)
        loss = self._validate()["validation_loss"]
        self._network.set_weights(current)
        if math.isclose(loss, best.validation_loss, rel_tol=SAME_LOSS):
            return best
        return replace(best, validation_loss=loss, compared_from=self._progress.epoch)

    def _validate(self) -> dict[str, float]:
        maps = self._batches.data.maps[self._validation]
        predicted = predict(self._network, self._batches, self._validation)
        mae = float(np.abs(predicted[..., 0] - maps).mean())
        if self._budget.ordered:
            predicted = predict(self._network, self._batches, self._validation, reduced=True)
        loss = float(self._network.compute_loss(y=maps[..., None], y_pred=predicted, training=False))
        return {"validation_loss": loss, "validation_mae": mae}


def _cut_history(path: Path, step: int) -> None:
    """Drop the rows of steps after the checkpoint, which are taken again, and a row that a power loss cut off."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))
