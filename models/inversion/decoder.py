"""Run the fusion decoder at the centre: loaded once, compiled once, int8 latents in, velocity in m/s out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import models.networks.network  # noqa: F401  registers the layers that a saved decoder names
from firmware_py.inference.companding import dequantise
from firmware_py.protocol.rate import Rate, RateError, read_coding
from models.errors import ModelsError
from models.inversion.compiled import compile_decoder
from models.inversion.ood import OodError, OodStatistics, load_ood
from models.training.run_config import write_json
from physics.acquisition import Acquisition
from physics.files.atomic import atomic_write
from physics.normalise import denormalise_velocity

CALIBRATION_SAMPLES = 64
# Samples predicted at a time while calibrating; bounds the memory.
CALIBRATION_BATCH = 16
# Out-of-distribution (OOD) statistics, stored beside the weights.
OOD_FILE = "familiarity.npz"


class DecoderError(ModelsError, ValueError):
    """A decoder folder is missing or damaged, or does not match the latents."""


class Decoder:
    """Predict maps from latents.

    Attributes:
        n_devices: Number of devices.
        latent: Values of one latent.
        model_hash: Hash (hex) of the encoder that the decoder was trained with.
        acquisition: The survey.
        sha256: SHA-256 of the weights.
        folder: Folder that the decoder was loaded from.
        coding: Payload formats that hold a latent for this decoder.
        ood_statistics: OOD statistics; None in older models.
        latent_scale: Quantisation of the latents, with ``latent_zero_point``.
        adaptation: What `epic central adapt` says of this decoder; None for a released one.
    """

    def __init__(
        self,
        network: keras.Model,
        description: dict,
        sha256: str,
        folder: Path,
        ood_statistics: OodStatistics | None = None,
    ) -> None:
        self.folder = folder
        self.ood_statistics = ood_statistics
        self.acquisition = Acquisition.from_dict(description["acquisition"])
        self.model_hash: str = description["model_hash"]
        self.sha256 = sha256
        self.n_devices, self.latent = network.input["latents"].shape[1:]
        self.coding = read_coding(description, self.latent, int(description["latent_zero_point"]))
        self.latent_scale = float(description["latent_scale"])
        self.latent_zero_point = int(description["latent_zero_point"])
        self.adaptation: dict[str, Any] | None = description.get("adaptation")
        self.uncertainty_factor = float(description.get("uncertainty_factor", 1.0))
        self._predict = compile_decoder(network, self.acquisition.device_positions())

    def decode(self, latents_int8: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the map of one event.

        Args:
            latents_int8: ``(n_devices, latent)`` int8; rows of absent devices are ignored.
            present: ``(n_devices,)`` bool.

        Returns:
            Velocity and uncertainty, both float32 ``(1, nz, nx)`` in m/s. The uncertainty is the scale b of a Laplace
                distribution, which is its mean absolute error.

        Raises:
            DecoderError: A shape or type is wrong, or no device is present.
        """
        velocity, uncertainty = self.decode_batch(np.asarray(latents_int8)[None], np.asarray(present)[None])
        return velocity[0], uncertainty[0]

    def decode_batch(self, latents_int8: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the maps of many events: ``(n, n_devices, latent)``, ``(n, n_devices)`` -> ``(n, 1, nz, nx)`` each.

        An event's map is identical to the last bit, whatever the other events are.
        """
        present = np.asarray(present, dtype=bool)
        expected = (self.n_devices, self.latent)
        if latents_int8.ndim != 3 or latents_int8.shape[1:] != expected or latents_int8.dtype != np.int8:
            raise DecoderError(
                f"decode: expected int8 latents {expected}, got {latents_int8.dtype} {latents_int8.shape[1:]}"
            )
        if present.shape != latents_int8.shape[:2] or not present.any(axis=1).all():
            raise DecoderError(
                f"decode: expected a mask of {self.n_devices} devices with at least one present, got {present}"
            )
        latents = dequantise(latents_int8, self.latent_scale, self.latent_zero_point)
        latents[~present] = 0.0
        return self.decode_float(latents, present)

    def ood_score(
        self, latents_int8: np.ndarray, present: np.ndarray, rates: Sequence[Rate]
    ) -> tuple[float, float] | None:
        """Return the OOD score of one event and its limit; None if the model has no OOD statistics.

        Shapes are those of ``decode``. ``rates`` holds the rate at which each device sent its latent. See
        ``models.inversion.ood``.
        """
        if self.ood_statistics is None:
            return None
        latents = dequantise(np.asarray(latents_int8), self.latent_scale, self.latent_zero_point)
        sent = np.array([[rate.values for rate in rates]])
        # A value read as the middle of a step is uniform within the step. The training latents already include the
        # 8-bit rounding.
        steps = np.array([[(1 << (8 - rate.bits)) * (rate.bits < 8) for rate in rates]]) * self.latent_scale
        (score,) = self.ood_statistics.scores(
            latents[None], np.asarray(present, bool)[None], sent, np.square(steps) / 12
        )
        return float(score), self.ood_statistics.limit

    def decode_float(self, latents: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict maps from a batch of float latents.

        ``(n, n_devices, latent)``, ``(n, n_devices)`` -> velocity and uncertainty ``(n, 1, nz, nx)`` in m/s.
        """
        events = zip(np.asarray(latents, np.float32), np.asarray(present, np.float32), strict=True)
        predicted = np.stack([self._predict(*event) for event in events])
        a = self.acquisition
        velocity = denormalise_velocity(predicted[..., 0], a)
        half_range_mps = (a.velocity_max_mps - a.velocity_min_mps) / 2
        scale_mps = np.exp(predicted[..., 1]) * (half_range_mps * self.uncertainty_factor)
        velocity = np.clip(velocity, a.velocity_min_mps, a.velocity_max_mps)
        return velocity[:, None].astype(np.float32), scale_mps[:, None].astype(np.float32)


@dataclass(frozen=True)
class LatentFormat:
    """Latents of the encoder ``model_hash`` (hex).

    ``scale`` and ``zero_point`` are their quantisation. ``prefixes`` are the pairs (values, bits) of the reduced rates
    that the decoder was trained for.
    """

    model_hash: str
    scale: float
    zero_point: int
    prefixes: tuple[tuple[int, int], ...] = ()


def save_decoder(
    folder: Path,
    weights: Path,
    latents: LatentFormat,
    acquisition: Acquisition,
    ood_statistics: OodStatistics | None = None,
) -> str:
    """Write a decoder folder and return the SHA-256 of its weights.

    Args:
        folder: Created if it does not exist.
        weights: Keras file of the decoder.
        latents: Latents that the decoder was trained with.
        acquisition: The survey.
        ood_statistics: Out-of-distribution statistics of the latents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if ood_statistics is not None:
        ood_statistics.save(folder / OOD_FILE)
    with atomic_write(folder / "decoder.keras") as temporary:
        shutil.copyfile(weights, temporary)
    sha256 = file_sha256(folder / "decoder.keras")
    write_json(
        folder / "decoder.json",
        {
            "format": "epic-decoder/1",
            "sha256": sha256,
            "model_hash": latents.model_hash,
            "latent_scale": latents.scale,
            "latent_zero_point": latents.zero_point,
            "acquisition": acquisition.to_dict(),
            "prefixes": latents.prefixes,
        },
    )
    return sha256


def calibrate_uncertainty(decoder: Decoder, latents: np.ndarray, maps: np.ndarray) -> float:
    """Scale the uncertainty of ``decoder`` so that its mean equals the mean absolute error; return the factor.

    The network learns its uncertainty on training samples, whose errors are smaller than those of new samples. The
    scaled decoder is saved to its folder. With fewer than ``CALIBRATION_SAMPLES`` samples nothing is changed.

    Args:
        latents: ``(n, n_devices, latent)`` float32, of samples not used in training.
        maps: Their normalised maps.
    """
    if len(maps) < CALIBRATION_SAMPLES:
        return 1.0
    a = decoder.acquisition
    error_mps = uncertainty_mps = 0.0
    for start in range(0, len(maps), CALIBRATION_BATCH):
        some = slice(start, start + CALIBRATION_BATCH)
        true_mps = denormalise_velocity(maps[some], a)
        everyone = np.ones((len(true_mps), decoder.n_devices), bool)
        predicted_mps, scale_mps = decoder.decode_float(latents[some], everyone)
        error_mps += float(np.abs(predicted_mps[:, 0] - true_mps).sum(dtype=float))
        uncertainty_mps += float(scale_mps.sum(dtype=float))
    factor = round(error_mps / uncertainty_mps, 6)
    decoder.uncertainty_factor *= factor
    about = decoder.folder / "decoder.json"
    write_json(
        about, {**json.loads(about.read_text()), "uncertainty_factor": round(decoder.uncertainty_factor, 6)}
    )
    return factor


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_decoder(folder: Path | str) -> Decoder:
    """Load and compile the decoder in ``folder``. Raises ``DecoderError``."""
    folder = Path(folder)
    weights, about = folder / "decoder.keras", folder / "decoder.json"
    for path in (weights, about):
        if not path.exists():
            raise DecoderError(f"{path}: not found; expected a decoder folder as `epic convert` writes it")
    try:
        description = json.loads(about.read_text())
        expected = description["sha256"]
    except (json.JSONDecodeError, KeyError) as error:
        raise DecoderError(f"{about}: not a decoder description ({error}); convert again") from None
    found = file_sha256(weights)
    if found != expected:
        raise DecoderError(
            f"{weights}: SHA-256 is {found[:16]}…, {about.name} says {expected[:16]}…; "
            "the file is damaged or from another model: copy the whole folder again"
        )
    network = keras.models.load_model(weights, compile=False)
    ood_statistics = None
    if (folder / OOD_FILE).exists():
        try:
            ood_statistics = load_ood(folder / OOD_FILE, network.input["latents"].shape[-1])
        except OodError as error:
            raise DecoderError(str(error)) from None
    try:
        return Decoder(network, description, found, folder, ood_statistics)
    except RateError as error:
        raise DecoderError(f"{about}: {error}; convert again") from None
