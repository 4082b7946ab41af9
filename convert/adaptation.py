"""Adapt a released model to other ground: train its decoder on new data, keep its encoder.

Devices keep their encoder, so they need no update. The decoder is trained on the encoder's int8 latents of the new
gathers, with noise, field augmentation, device dropout and reduced rates as in the original training.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from boards.fit.graph import read_graph
from convert import litert
from convert.errors import ConversionError
from convert.parts import Parts
from convert.release import staged_release
from convert.run_folder import OOD_GATHERS
from convert.verify import int8_latents
from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.inference.companding import dequantise, quantise
from models.data.batches import EpicBatches
from models.data.gathers import DecimatedSet, load_decimated
from models.evaluation.scores import score
from models.inversion.decoder import calibrate_uncertainty, load_decoder, save_decoder
from models.inversion.ood import measure_ood
from models.networks.nested_latent import AsSent, prefix_rates
from models.networks.network import DevicePositions
from models.recipes import recipe_of
from models.training.budget import Budget
from models.training.prediction import predict
from models.training.run import split_validation
from models.training.run_config import write_json
from models.training.training import load_network, train


@dataclass(frozen=True)
class Adaptation:
    """Errors by family (``models.evaluation.scores``) on the validation set, before and after."""

    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]


class LatentBatches(EpicBatches):
    """Make training batches as the centre receives them: int8 latents of a bundle's encoder, dequantised."""

    def __init__(self, data: DecimatedSet, bundle: Bundle, latent: int) -> None:
        super().__init__(data, bundle.companding, nested=latent)
        self.bundle = bundle
        self._encoder = bundle.encoder_path.read_bytes()

    def training(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        inputs, maps = super().training(indices, rng)
        return self._encoded(inputs), maps

    def plain(self, indices: np.ndarray, reduced: bool = False) -> tuple[dict, np.ndarray]:
        inputs, maps = super().plain(indices, reduced)
        return self._encoded(inputs), maps

    def _encoded(self, inputs: dict) -> dict:
        others = {name: values for name, values in inputs.items() if name != "parts"}
        return {"latents": self.latents(inputs["parts"]), **others}

    def latents(self, parts: np.ndarray) -> np.ndarray:
        """Encode companded parts ``(n, n_devices, T', width, S)`` to latents ``(n, n_devices, latent)`` float32."""
        into, out = self.bundle.input, self.bundle.output
        codes = quantise(parts.reshape(-1, *parts.shape[2:]), into.scale, into.zero_point)
        latents = dequantise(litert.run(self._encoder, codes), out.scale, out.zero_point)
        return latents.reshape(*parts.shape[:2], -1)


def adapt(
    model: Path,
    data: list[Path],
    out: Path,
    budget: Budget,
    on_progress: Callable[[float, dict], None] = lambda share, figures: None,
    on_load: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """Train the decoder of the released ``model`` on OpenFWI folders ``data`` and write a model to ``out``.

    The checkpoint is kept in ``out/adaptation`` until the training is done; calling again resumes it. One sample in 50
    is kept for validation and calibration.

    Raises:
        ConversionError: The adapted decoder has a larger error on the validation set than the old one. No model is
            written.
        DataError, TrainingError, BundleError, DecoderError: As in training and loading.
    """
    bundle = load_bundle(model / "bundle")
    decoder = load_decoder(model / "decoder")
    a = decoder.acquisition
    batches = LatentBatches(load_decimated(data, a, bundle.companding.thin, on_load), bundle, decoder.latent)
    validation, training = split_validation(len(batches))
    if not len(validation):
        raise ConversionError(
            f"adapt: expected at least 50 samples, of which one is to validate on, got {len(batches)}; add data"
        )
    keras.utils.set_random_seed(budget.seed)
    learner = load_network(model / "decoder" / "decoder.keras")
    network = _as_received(learner, decoder.acquisition.device_positions())
    recipe_of("epic").compile_model(network, budget)
    before = score(predict(network, batches, validation)[..., 0], batches.data, validation)
    run = out / "adaptation"
    run.mkdir(parents=True, exist_ok=True)
    train(network, batches, validation, training, budget, run, on_progress)
    after = score(predict(network, batches, validation)[..., 0], batches.data, validation)
    if after["all"]["mae"] > before["all"]["mae"]:
        raise ConversionError(
            f"adapt: the adapted decoder's maps are worse than the former one's, MAE {after['all']['mae']:.4f} against "
            f"{before['all']['mae']:.4f} of the validation set; train longer, or add data"
        )
    some = np.random.default_rng(1).permutation(training)[:OOD_GATHERS]
    _publish(model, learner, batches, (some, validation), after, out)
    shutil.rmtree(run)
    return Adaptation(before, after)


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


def _publish(
    model: Path,
    learner: keras.Model,
    batches: LatentBatches,
    split: tuple[np.ndarray, np.ndarray],
    after: dict[str, dict[str, float]],
    out: Path,
) -> None:
    """Write ``out/decoder`` and ``out/bundle``; the bundle differs from the previous one only in its decoder's name.

    Args:
        model: The model before.
        learner: The trained decoder.
        batches: Data and bundle.
        split: Indices of training samples, for the OOD score, and of the validation set.
        after: Errors on the validation set, for the manifest.
        out: Folder of the adapted model.
    """
    bundle, decoder, data = batches.bundle, load_decoder(model / "decoder"), batches.data
    encoder = bundle.encoder_path.read_bytes()
    graph = read_graph(encoder)
    seen, validation = (
        int8_latents(encoder, graph, Parts(data.gathers[i], data.acquisition, bundle.companding))
        for i in split
    )
    maps = data.maps[split[1]]
    with staged_release(out) as stage, tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "decoder.keras"
        learner.save(weights)
        scale, zero_point = bundle.output.scale, bundle.output.zero_point
        prefixes = prefix_rates(decoder.latent) if len(decoder.coding.rates) > 2 else ()
        ood_statistics = measure_ood(seen, validation)
        sha256 = save_decoder(
            stage.decoder,
            weights,
            decoder.model_hash,
            scale,
            zero_point,
            decoder.acquisition,
            ood_statistics,
            prefixes,
        )
        calibrate_uncertainty(load_decoder(stage.decoder), validation, maps)
        shutil.copytree(model / "bundle", stage.bundle)
        manifest = json.loads((stage.bundle / "manifest.json").read_text())
        manifest["decoder_sha256"] = sha256
        manifest["metrics"]["adapted"] = {name: round(row["mae"], 5) for name, row in after.items()}
        write_json(stage.bundle / "manifest.json", manifest)
        stage.publish()
