"""Train within a budget of time or epochs: progress, crash-safe checkpoints, curves, metrics.

A run folder holds ``config.json``, ``history.jsonl``, ``curves.png``, ``checkpoint/`` and, when finished, the networks
and ``metrics.json``.
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

from models.data.batches import TrainingData
from models.errors import TrainingError
from models.training.budget import Budget, Progress, learning_rate_at
from models.training.monitor import Best, Monitor, load_best
from models.training.run_config import write_json
from physics.files.atomic import sync_tree

CHECKPOINT_INTERVAL_S = 120.0


@dataclass(frozen=True)
class Steps:
    """How a network learns.

    Attributes:
        learn: ``learn(inputs, maps)`` trains on a batch and returns its loss. None takes one step of the network's
            optimiser.
        turn: Steps that ``learn`` takes per call; it then gets the indices of as many batches.
    """

    learn: Callable[[Any, Any], float] | None = None
    turn: int = 1


def train(
    network: keras.Model,
    data: TrainingData,
    budget: Budget,
    run: Path,
    steps: Steps = Steps(),
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_report: Callable[[dict], None] = lambda row: None,
) -> tuple[Progress, Best | None]:
    """Train a compiled ``network`` until the budget is spent; resume from ``run/checkpoint`` if it exists.

    The network ends with its best weights (``models.training.monitor``). On SIGINT and SIGTERM the current step ends, a
    checkpoint is saved, and ``KeyboardInterrupt`` is raised.

    Args:
        data: Batches, training and validation set.
        budget: Time or epochs, and settings.
        run: Folder of the history and the checkpoint.
        steps: How the network learns.
        on_progress: ``on_progress(share, figures)`` is called about once a second.
        on_report: Called with each row of ``history.jsonl``.

    Returns:
        Progress, and the best weights; None without a validation set.

    Raises:
        TrainingError: The loss or a weight is not finite; the last checkpoint is kept.
    """
    progress = _resume(network, run)
    folder = _checkpoint_folder(run)
    best = load_best(network, folder) if folder else None
    monitor = Monitor(network, data, budget, run, progress, best, on_report)
    learn = steps.learn or _one_step(network)
    rng = np.random.default_rng([budget.seed, progress.step])
    order = _order(data.training, steps.turn * budget.batch, rng)
    last_save = last_call = started = time.monotonic()
    before, core_before = progress.elapsed_s, progress.core_s - time.process_time()
    with _stop_signals() as stopped:
        while progress.share_of(budget) < 1.0 and not stopped and not monitor.exhausted:
            indices = next(order)
            network.optimizer.learning_rate.assign(
                learning_rate_at(progress.share_of(budget), budget.learning_rate)
            )
            loss = learn(*data.batches.training(indices, rng))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"training: loss became {loss} at step {progress.step}; lower --learning-rate and "
                    f"start again, or resume from the last checkpoint in {run}"
                )
            progress.step += steps.turn
            progress.epoch += len(indices) / max(len(data.training), 1)
            now = time.monotonic()
            progress.elapsed_s = before + (now - started)
            progress.core_s = core_before + time.process_time()
            monitor.add(loss)
            if now - last_call > 1.0:
                on_progress(progress.share_of(budget), {"loss": monitor.loss, "epoch": progress.epoch})
                last_call = now
            save = now - last_save > CHECKPOINT_INTERVAL_S
            if save or monitor.due():
                monitor.report()
            if save:
                _save(network, run, progress, monitor.best)
                last_save = time.monotonic()
        monitor.report()
        _save(network, run, progress, monitor.best)
    if stopped:
        raise KeyboardInterrupt
    if monitor.best:
        network.set_weights(monitor.best.weights)
    return progress, monitor.best


def _order(training: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield ``count`` indices at a time: every sample once, in random order, then again."""
    order: np.ndarray = np.array([], dtype=int)
    while True:
        if len(order) < count:
            order = np.concatenate([order, rng.permutation(training)])
        indices, order = order[:count], order[count:]
        yield indices


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


def _save(network: keras.Model, run: Path, progress: Progress, best: Best | None) -> None:
    """Replace the checkpoint folder (weights, optimiser, progress, best weights) atomically.

    Raises ``TrainingError`` for NaN.
    """
    # A clipped activation can hide a NaN from the loss, so the weights are checked.
    check_finite(network, str(run), "look for loud or damaged gathers, lower --learning-rate, start again")
    folder, fresh, old = run / "checkpoint", run / "checkpoint.new", run / "checkpoint.old"
    fresh.mkdir(exist_ok=True)
    network.save(fresh / "network.keras")
    write_json(fresh / "progress.json", vars(progress))
    if best is not None:
        best.save(network, fresh)
    # After a power cut, the new checkpoint has all its content or the old one is still there.
    sync_tree(fresh)
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


def load_checkpoint(run: Path, best: bool = False) -> keras.Model:
    """Load the network of a run's last checkpoint, with its optimiser; with ``best``, with its best weights.

    Raises ``TrainingError`` if there is no checkpoint, or it is damaged.
    """
    folder = _checkpoint_folder(run)
    if folder is None:
        raise TrainingError(f"{run}: holds no checkpoint; expected a run folder as `epic train` writes it")
    network = load_network(folder / "network.keras", compiled=True)
    if best and (found := load_best(network, folder)):
        network.set_weights(found.weights)
    return network


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
