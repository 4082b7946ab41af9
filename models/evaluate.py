"""Errors of trained runs on held-out data, family by family."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from models.data import ThinnedSet, load_thinned
from models.run import RunConfig, assemble, read_config, score
from models.training import TrainingError, predict
from physics.acquisition import Acquisition


def evaluate_run(run: Path, data: list[Path], missing: tuple[int, ...] = ()) -> dict[str, dict[str, float]]:
    """Score the finished run on every sample under ``data`` (float networks, before int8).

    ``missing`` names devices that are not heard (EPIC only). Returns the table of ``models.run.score``.
    Raises ``TrainingError`` for a run that has no weights yet, ``DataError`` for missing data.
    """
    config = read_config(run)
    held_out = load_held_out(config, data)
    acquisition = held_out.acquisition
    config = type(config)(**{**vars(config), "data": [str(folder) for folder in data]})
    network, batches, parts = assemble(config, held_out, acquisition)
    for name, part in parts.items():
        path = run / f"{name}.keras"
        if not path.exists():
            raise TrainingError(f"{path}: not found; the run has not finished, resume it with `epic train`")
        part.set_weights(keras.models.load_model(path, compile=False).get_weights())
    indices = np.arange(len(held_out))
    if missing:
        batches = _WithMissing(batches, missing)
    return score(predict(network, batches, indices)[..., 0], held_out, indices)


def load_held_out(config: RunConfig, data: list[Path]) -> ThinnedSet:
    """The samples under ``data`` for a run of ``config``. Raises ``TrainingError`` if it was trained on them."""
    held_out = load_thinned(data, Acquisition.from_dict(config.acquisition), config.thin)
    if clash := sorted({str(Path(d).resolve()) for d in config.data} & {str(d.resolve()) for d in data}):
        raise TrainingError(f"evaluate: {', '.join(clash)} was trained on; give held-out data")
    return held_out


class _WithMissing:
    """EPIC's batches with some devices never heard."""

    def __init__(self, batches, missing: tuple[int, ...]) -> None:
        self.inner = batches
        self.missing = list(missing)

    def plain(self, indices: np.ndarray):
        inputs, maps = self.inner.plain(indices)
        if "mask" not in inputs or not set(self.missing) < set(range(inputs["mask"].shape[1])):
            raise TrainingError(f"evaluate: cannot leave out devices {self.missing} of this network")
        inputs["mask"][:, self.missing] = 0.0
        return inputs, maps
