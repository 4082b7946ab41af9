"""Measure whether the consistency check separates good maps from bad ones, on test data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from firmware_py.inference.companding import Companding
from models.data.gathers import PARTS_AT_ONCE, device_parts
from models.errors import TrainingError
from models.evaluation.evaluate import load_held_out
from models.inversion.latent_model import LatentModel
from models.training.run_config import read_config
from models.training.training import load_network
from physics.normalise import denormalise_velocity

# Share of maps with the largest distance that a threshold would flag.
FLAGGED_SHARE = 0.1


def measure_consistency(
    run: Path,
    data: list[Path],
    count: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Measure the latent distances of ``count`` samples spread over the families under ``data``.

    See ``LatentModel.distance``.

    Returns:
        ``truth`` and ``predicted``: median distances of the true and of the predicted maps. ``unrelated``: median
            distance of the predicted maps to the next sample's latents. ``correlation``: Spearman's, between a
            predicted map's distance and its MAE. ``mae``: of all maps. ``mae_of_flagged``: of the tenth with the
            largest distance.

    Raises:
        TrainingError: The run or the data cannot be used.
    """
    config = read_config(run)
    if config.kind != "epic" or config.companding is None:
        raise TrainingError(f"{run}: expected a run of `epic train epic`, got one of {config.kind!r}")
    companding = Companding.from_dict(config.companding)
    held_out = load_held_out(config, data)
    acquisition = held_out.acquisition
    if not 3 <= count <= len(held_out):
        raise TrainingError(
            f"evaluate: expected 3 to {len(held_out)} samples for the physics check, got {count}"
        )
    encoder, decoder = (load_network(run / f"{name}.keras") for name in ("encoder", "decoder"))
    coded = []
    for start in range(0, len(held_out), PARTS_AT_ONCE):
        parts = device_parts(held_out.gathers[start : start + PARTS_AT_ONCE], acquisition, companding)
        flat = parts.reshape(-1, *parts.shape[2:])
        coded.append(encoder.predict(flat, batch_size=100, verbose=0).reshape(*parts.shape[:2], -1))
    latents = np.concatenate(coded)
    model = LatentModel(encoder, companding, acquisition, latents.reshape(-1, latents.shape[-1]).std(axis=0))
    chosen = np.linspace(0, len(held_out) - 1, count).astype(int)
    everyone = np.ones(latents.shape[:2], np.float32)
    positions = np.repeat(acquisition.device_positions()[None], len(latents), axis=0)
    predicted = decoder.predict(
        {"latents": latents, "positions": positions, "mask": everyone}, batch_size=50, verbose=0
    )["velocity"][..., 0]
    predicted = np.clip(predicted, -1.0, 1.0)
    rows = []
    for done, i in enumerate(chosen, start=1):
        of_truth, of_map = (
            model.latents(denormalise_velocity(map_, acquisition))
            for map_ in (held_out.maps[i], predicted[i])
        )
        other = latents[chosen[done % count]]
        rows.append(
            [
                float(model.distance(of_truth, latents[i], everyone[i])),
                float(model.distance(of_map, latents[i], everyone[i])),
                float(model.distance(of_map, other, everyone[i])),
                float(np.abs(predicted[i] - held_out.maps[i]).mean()),
            ]
        )
        on_progress(done, count)
    truth, predicted, unrelated, mae = np.array(rows).T
    flagged = predicted >= np.quantile(predicted, 1.0 - FLAGGED_SHARE)
    return {
        "samples": count,
        "truth": float(np.median(truth)),
        "predicted": float(np.median(predicted)),
        "unrelated": float(np.median(unrelated)),
        "correlation": float(np.corrcoef(_ranks(predicted), _ranks(mae))[0, 1]),
        "mae": float(mae.mean()),
        "mae_of_flagged": float(mae[flagged].mean()),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)
