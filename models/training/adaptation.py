"""Train a released decoder further on the latents that devices send; the encoder stays as it is.

Batches hold int8 latents of the devices' own encoder, with noise, field augmentation, device dropout and reduced rates
as in the original training. `epic adapt` and `epic central adapt` both build on this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from firmware_py.inference.companding import Companding
from models.data.batches import EpicBatches, TrainingData
from models.data.gathers import PARTS_AT_ONCE, DecimatedSet
from models.evaluation.prediction import predict
from models.evaluation.scores import score
from models.inversion.decoder import Decoder, LatentFormat, calibrate_uncertainty, load_decoder, save_decoder
from models.inversion.ood import OOD_GATHERS, measure_ood
from models.networks.nested_latent import AsSent, prefix_rates
from models.networks.network import DevicePositions
from models.recipes import recipe_of
from models.training.budget import Budget
from models.training.training import train

# Shares of the change of the weights that are tried, the largest first.
BLENDS = (1.0, 0.8, 0.6, 0.4)


@dataclass(frozen=True)
class Adaptation:
    """Errors by family (``models.evaluation.scores``) on the validation set, before and after."""

    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Split:
    """Indices of samples.

    Attributes:
        training: Samples to train on; one that is named twice counts twice.
        validation: Samples to score on.
        selects: Keep the weights with the smallest loss on ``validation``; False keeps the last ones, so that
            ``validation`` stays a test set.
    """

    training: np.ndarray
    validation: np.ndarray
    selects: bool = True


class LatentBatches(EpicBatches):
    """Make training batches as the centre receives them: latents after int8 rounding, as real values.

    ``encode`` is the devices' encoder: companded parts ``(n, T', width, S)`` -> latents ``(n, latent)`` float32.
    """

    def __init__(
        self,
        data: DecimatedSet,
        companding: Companding,
        encode: Callable[[np.ndarray], np.ndarray],
        latent: int,
    ) -> None:
        super().__init__(data, companding, nested=latent)
        self._encode = encode

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        inputs, maps = super().training(indices, rng)
        return self._encoded(inputs), maps

    def plain(self, indices: np.ndarray, reduced: bool = False) -> tuple[dict, np.ndarray]:
        inputs, maps = super().plain(indices, reduced)
        return self._encoded(inputs), maps

    def latents(self, indices: np.ndarray) -> np.ndarray:
        """Return the latents of samples without augmentation, ``(n, n_devices, latent)`` float32."""
        return np.concatenate(
            [
                self.plain(indices[start : start + PARTS_AT_ONCE])[0]["latents"]
                for start in range(0, len(indices), PARTS_AT_ONCE)
            ]
        )

    def _encoded(self, inputs: dict) -> dict:
        parts = inputs["parts"]
        latents = self._encode(parts.reshape(-1, *parts.shape[2:])).reshape(*parts.shape[:2], -1)
        others = {name: values for name, values in inputs.items() if name != "parts"}
        return {"latents": latents, **others}


def adapt_decoder(
    learner: keras.Model,
    batches: LatentBatches,
    split: Split,
    budget: Budget,
    run: Path,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
) -> Adaptation:
    """Train the decoder ``learner`` in place; a checkpoint in ``run`` is resumed.

    Args:
        learner: A decoder as ``models.networks.fusion`` builds it, with the weights to start from.
        batches: Data and encoder.
        split: What to train and to score on.
        budget: Time and settings.
        run: Folder of the checkpoint and the history.
        on_progress: As in ``train``.

    Raises:
        TrainingError: Training diverged.
    """
    keras.utils.set_random_seed(budget.seed)
    network = _as_received(learner, batches.data.acquisition.device_positions())
    recipe_of("epic").compile_model(network, budget)
    validation = split.validation
    before = score(predict(network, batches, validation)[..., 0], batches.data, validation)
    run.mkdir(parents=True, exist_ok=True)
    data = TrainingData(batches, split.training, validation if split.selects else validation[:0])
    train(network, data, budget, run, on_progress=on_progress)
    after = score(predict(network, batches, validation)[..., 0], batches.data, validation)
    return Adaptation(before, after)


def blend(
    learner: keras.Model,
    original: Sequence[np.ndarray],
    batches: LatentBatches,
    validation: np.ndarray,
    most_mae: float,
) -> tuple[float, float]:
    """Move trained weights back towards the original ones until the error on the original families is allowed.

    Weights between the two keep most of what was learnt at a part of its cost (Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models", CVPR).

    Args:
        learner: The trained decoder; its weights are changed.
        original: Weights of the decoder before its adaptation, as ``get_weights`` returns them.
        batches: Data and encoder.
        validation: Samples of the original families.
        most_mae: Largest error on them, normalised maps.

    Returns:
        The share of the change that is left, and the error. It is the largest of ``BLENDS`` within ``most_mae``, or the
        smallest.
    """
    network = _as_received(learner, batches.data.acquisition.device_positions())
    trained = learner.get_weights()
    for share in BLENDS:
        learner.set_weights([old + share * (new - old) for old, new in zip(original, trained, strict=True)])
        found = score(predict(network, batches, validation)[..., 0], batches.data, validation)
        if found["all"]["mae"] <= most_mae:
            break
    return share, found["all"]["mae"]


def write_decoder(
    folder: Path,
    learner: keras.Model,
    parent: Decoder,
    batches: LatentBatches,
    split: Split,
) -> str:
    """Write the trained ``learner`` as a decoder folder; return the SHA-256 of its weights.

    OOD statistics are measured on latents of some training samples, the uncertainty on the validation set.

    Args:
        parent: The decoder that training started from; it names the encoder.

    Raises:
        OodError: There are too few samples.
    """
    some = np.random.default_rng(1).permutation(np.unique(split.training))[:OOD_GATHERS]
    held_out = batches.latents(split.validation)
    ood_statistics = measure_ood(batches.latents(some), held_out)
    with tempfile.TemporaryDirectory() as aside:
        weights = Path(aside) / "decoder.keras"
        learner.save(weights)
        latents = LatentFormat(
            parent.model_hash,
            parent.latent_scale,
            parent.latent_zero_point,
            prefix_rates(parent.latent) if len(parent.coding.rates) > 2 else (),
        )
        sha256 = save_decoder(folder, weights, latents, parent.acquisition, ood_statistics)
    calibrate_uncertainty(load_decoder(folder), held_out, batches.data.maps[split.validation])
    return sha256


def _as_received(decoder: keras.Model, positions: np.ndarray) -> keras.Model:
    """Put the reduction of rates before ``decoder``, with one output ``(batch, nz, nx, 2)`` for training."""
    n, latent = decoder.input["latents"].shape[1:]
    inputs: dict[str, Any] = {"latents": keras.Input((n, latent), name="latents")}
    inputs |= {name: keras.Input((n,), name=name) for name in ("mask", "values", "bits")}
    latents = AsSent(name="as_sent")(inputs["latents"], values=inputs["values"], bits=inputs["bits"])
    places = DevicePositions(positions.tolist(), name="places")(inputs["mask"])
    predicted = decoder({"latents": latents, "positions": places, "mask": inputs["mask"]})
    return keras.Model(
        inputs, ops.concatenate([predicted["velocity"], predicted["log_scale"]], axis=-1), name="epic"
    )
