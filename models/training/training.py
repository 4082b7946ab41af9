"""Train within a budget of time or epochs: progress, crash-safe checkpoints, curves, metrics.

The learning rate follows the share of the budget spent: a short warm-up, then a cosine to zero. A run of any length
therefore ends annealed. A run folder holds ``config.json``, ``history.jsonl``, ``curves.png``, ``checkpoint/`` and,
when finished, the networks and ``metrics.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.errors import TrainingError
from physics.files.atomic import atomic_write

WARM_UP_SHARE = 0.02
CHECKPOINT_INTERVAL_S = 120.0
# A multiple of every common number of accelerators.
PREDICTED_TOGETHER = 48
PRECISIONS = ("float32", "mixed_bfloat16")
OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class Budget:
    """Budget of a run: ``minutes`` of training time or ``epochs`` over the data, and how to train.

    Attributes:
        precision: Arithmetic; mixed_bfloat16 is faster where the processor supports it.
        quantised: Train with the encoder's int8 rounding (``models.networks.quantised``).
        ordered: Train with devices at reduced rates (``models.networks.nested_latent``).
        optimiser: One of ``OPTIMISERS`` (``models.training.muon``).
    """

    batch: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    minutes: float | None = None
    epochs: float | None = None
    seed: int = 0
    precision: str = "float32"
    quantised: bool = False
    ordered: bool = False
    optimiser: str = "adamw"

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise TrainingError("budget: expected either --minutes or --epochs; give one of them")
        if (self.minutes or self.epochs or 0) <= 0 or self.batch < 1:
            raise TrainingError("budget: expected a positive duration and batch")
        if self.seed < 0:
            raise TrainingError(
                f"budget: expected a seed of 0 or more, got {self.seed}; choose another --seed"
            )
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"budget: expected a precision of {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if self.optimiser not in OPTIMISERS:
            raise TrainingError(
                f"budget: expected an optimiser of {', '.join(OPTIMISERS)}; got {self.optimiser!r}"
            )


def learning_rate_at(share: float, peak: float) -> float:
    """Return the learning rate when ``share`` (0..1) of the budget is spent."""
    if share < WARM_UP_SHARE:
        return peak * (0.05 + 0.95 * share / WARM_UP_SHARE)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


@dataclass
class Progress:
    """Progress of a run, kept in the checkpoint. ``core_s`` is the processor time used."""

    step: int = 0
    epoch: float = 0.0
    elapsed_s: float = 0.0
    core_s: float = 0.0


def train(
    network: keras.Model,
    batches: Any,
    validation: np.ndarray,
    training: np.ndarray,
    budget: Budget,
    run: Path,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    learn: Callable[[Any, Any], float] | None = None,
    turn: int = 1,
) -> Progress:
    """Train a compiled ``network`` until the budget is spent; resume from ``run/checkpoint`` if it exists.

    On SIGINT and SIGTERM the current step ends, a checkpoint is saved, and ``KeyboardInterrupt`` is raised.

    Args:
        batches: Has ``training(indices, rng)`` and ``plain(indices)``.
        training: Indices of the training samples.
        validation: Indices of the validation set.
        on_progress: ``on_progress(share, figures)`` is called about once a second.
        learn: ``learn(inputs, maps)`` trains on a batch and returns its loss. Default: one step of the network's
            optimiser.
        turn: Steps that ``learn`` takes per call; it then gets the indices of as many batches.

    Raises:
        TrainingError: The loss or a weight is not finite; the last checkpoint is kept.
    """
    progress = _resume(network, run)
    learn = learn or _one_step(network)
    rng = np.random.default_rng([budget.seed, progress.step])
    order: np.ndarray = np.array([], dtype=int)
    recent: list[float] = []
    last_save = last_report = started = time.monotonic()
    before, core_before = progress.elapsed_s, progress.core_s - time.process_time()
    with _stop_signals() as stopped:
        while (share := _share(progress, budget)) < 1.0 and not stopped:
            if len(order) < turn * budget.batch:
                order = np.concatenate([order, rng.permutation(training)])
            indices, order = order[: turn * budget.batch], order[turn * budget.batch :]
            network.optimizer.learning_rate.assign(learning_rate_at(share, budget.learning_rate))
            loss = learn(*batches.training(indices, rng))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"training: loss became {loss} at step {progress.step}; lower --learning-rate and "
                    f"start again, or resume from the last checkpoint in {run}"
                )
            recent.append(loss)
            progress.step += turn
            progress.epoch += len(indices) / max(len(training), 1)
            now = time.monotonic()
            progress.elapsed_s = before + (now - started)
            progress.core_s = core_before + time.process_time()
            if now - last_report > 1.0:
                on_progress(
                    _share(progress, budget), {"loss": float(np.mean(recent[-50:])), "epoch": progress.epoch}
                )
                last_report = now
            if now - last_save > CHECKPOINT_INTERVAL_S:
                _report(network, batches, validation, recent, progress, budget, run)
                _save(network, run, progress)
                recent, last_save = [], time.monotonic()
        _report(network, batches, validation, recent, progress, budget, run)
        _save(network, run, progress)
    if stopped:
        raise KeyboardInterrupt
    return progress


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the yielded list; a second signal of the same kind ends the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, former[number])

    former: dict[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _one_step(network: keras.Model) -> Callable[[Any, np.ndarray], float]:
    def learn(inputs: Any, maps: np.ndarray) -> float:
        loss = float(network.train_on_batch(inputs, maps, return_dict=True)["loss"])
        network.reset_metrics()
        return loss

    return learn


def _share(progress: Progress, budget: Budget) -> float:
    if budget.minutes is not None:
        return progress.elapsed_s / (60.0 * budget.minutes)
    return progress.epoch / (budget.epochs or 1.0)


def predict(network: keras.Model, batches: Any, indices: np.ndarray) -> np.ndarray:
    """Return the network output for ``indices``, ``(len(indices), nz, nx, channels)``; compiled once."""
    drawn = []
    for start in range(0, len(indices), PREDICTED_TOGETHER):
        some = indices[start : start + PREDICTED_TOGETHER]
        # Constant batch size: another one would compile again and might not split across devices.
        filled = np.resize(some, PREDICTED_TOGETHER)
        drawn.append(np.asarray(network.predict_on_batch(batches.plain(filled)[0]))[: len(some)])
    return np.concatenate(drawn)


def _report(
    network: keras.Model,
    batches: Any,
    validation: np.ndarray,
    recent: list[float],
    progress: Progress,
    budget: Budget,
    run: Path,
) -> None:
    row: dict[str, Any] = {
        "step": progress.step,
        "epoch": round(progress.epoch, 3),
        "elapsed_s": round(progress.elapsed_s, 1),
        "core_s": round(progress.core_s, 1),
        "learning_rate": learning_rate_at(_share(progress, budget), budget.learning_rate),
        "loss": float(np.mean(recent)) if recent else None,
    }
    if len(validation):
        drawn = predict(network, batches, validation)[..., 0]
        row["validation_mae"] = float(np.abs(drawn - batches.data.maps[validation]).mean())
    with (run / "history.jsonl").open("a") as history:
        history.write(json.dumps(row) + "\n")


def _save(network: keras.Model, run: Path, progress: Progress) -> None:
    """Replace the checkpoint folder (weights, optimiser, progress) atomically. Raises ``TrainingError`` for NaN."""
    # A clipped activation can hide a NaN from the loss, so the weights are checked.
    check_finite(network, str(run), "look for loud or damaged gathers, lower --learning-rate, start again")
    folder, fresh, old = run / "checkpoint", run / "checkpoint.new", run / "checkpoint.old"
    fresh.mkdir(exist_ok=True)
    network.save(fresh / "network.keras")
    write_json(fresh / "progress.json", vars(progress))
    _remove(old)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _checkpoint_folder(run: Path) -> Path | None:
    # A kill between the two renames of _save leaves the complete checkpoint under the old name.
    for folder in (run / "checkpoint", run / "checkpoint.old"):
        if (folder / "progress.json").exists():
            return folder
    return None


def has_checkpoint(run: Path) -> bool:
    """Return True if the folder holds a checkpoint to resume from."""
    return _checkpoint_folder(run) is not None


def load_network(path: Path, compiled: bool = False) -> keras.Model:
    """Load a saved network, with its optimiser if ``compiled``.

    Raises:
        TrainingError: The file is missing or damaged, or its weights are not finite.
    """
    # These imports register the layers and the optimiser that a saved network names.
    import models.networks.network  # noqa: F401

    if not path.is_file():
        raise TrainingError(f"{path}: not found; the run has not finished, resume it with `epic train`")
    try:
        network = keras.models.load_model(path, compile=compiled)
    except Exception as error:  # Keras and its ZIP and HDF5 readers raise many exception types.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(
            f"{path}: expected a Keras network, got a file Keras refuses ({reason})"
        ) from None
    check_finite(network, str(path), "training has diverged, take an earlier checkpoint")
    return network


def check_finite(network: keras.Model, where: str, advice: str) -> None:
    """Raise ``TrainingError`` if a weight or a batch-normalisation statistic is not finite."""
    for weight in network.weights:
        if not np.isfinite(np.asarray(weight)).all():
            raise TrainingError(f"{where}: weight {weight.path} holds NaN or infinity; {advice}")


def load_checkpoint(run: Path) -> keras.Model:
    """Load the network of a run's last checkpoint, with its optimiser. Raises ``TrainingError`` if there is none."""
    folder = _checkpoint_folder(run)
    if folder is None:
        raise TrainingError(f"{run}: holds no checkpoint; expected a run folder as `epic train` writes it")
    return load_network(folder / "network.keras", compiled=True)


def _resume(network: keras.Model, run: Path) -> Progress:
    folder = _checkpoint_folder(run)
    if folder is None:
        return Progress()
    saved = load_checkpoint(run)
    network.set_weights(saved.get_weights())
    network.optimizer.build(network.trainable_variables)
    for mine, theirs in zip(network.optimizer.variables, saved.optimizer.variables, strict=True):
        mine.assign(theirs)
    return Progress(**json.loads((folder / "progress.json").read_text()))
