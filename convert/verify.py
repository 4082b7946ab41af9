"""Measure the cost of int8: compare the float encoder and its int8 model on the same test gathers.

The gate is the error of the decoded map. The latents are also compared after subtracting their mean, because an encoder
that has collapsed to a constant has an excellent uncentred signal-to-noise ratio but carries no information.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boards.fit import tflm
from boards.fit.epicnn import reference_latents
from convert import litert
from convert.errors import ConversionError
from convert.int8_encoder import Int8Encoder
from convert.parts import Parts
from firmware_py.inference.companding import dequantise, quantise
from firmware_py.protocol.rate import Rate, pack
from models.inversion.decoder import Decoder
from physics.normalise import normalise_velocity

# Allowed increase of the decoded maps' mean absolute error by int8.
MAX_MAE_COST_PERCENT = 3.0
# Test samples needed to refuse a model that is no better than the mean map; with fewer there is only a warning.
MIN_TEST_SAMPLES = 64
# TFLite-Micro's kernels round a few elements differently from LiteRT's. After six layers, some
# latent values differ by one step, and 7 in 100,000 by two. A wrong operator causes larger or more frequent
# differences. XNNPACK rescales in floating point, so it is not checked against this limit.
MAX_RUNTIME_DIFFERENCE_LSB = 2
MAX_BEYOND_ONE_STEP_FRACTION = 1e-3
DECODE_BATCH = 16
# Number of parts on which TFLite-Micro, which is slow, is compared with LiteRT.
TFLM_LATENTS = 160
# Golden vectors: about 4 kB each in the bundle, which may be sent over a serial line.
GOLDEN_VECTORS = 3


@dataclass(frozen=True)
class HeldOut:
    """Samples that were not used in training.

    ``parts`` are of all devices. ``maps (n, n_depth, n_width)`` are float32 in [-1, 1]. ``families (n,)`` are str.
    """

    parts: Parts
    maps: np.ndarray
    families: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)


@dataclass(frozen=True)
class MapError:
    """Mean absolute error of decoded maps in normalised units (1.0 is half the velocity range).

    ``mae_int8`` uses the latents of a Linux device (LiteRT with XNNPACK), ``mae_int8_micro`` those of a
    microcontroller's kernels.
    """

    n: int
    mae_float: float
    mae_int8: float
    mae_int8_micro: float

    @property
    def cost_percent(self) -> float:
        """Increase of the error by int8 in percent, the larger of the two; negative if int8 reduces it."""
        if self.mae_float <= 0:
            return float("inf")
        return 100.0 * (max(self.mae_int8, self.mae_int8_micro) / self.mae_float - 1.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "mae_float": round(self.mae_float, 5),
            "mae_int8": round(self.mae_int8, 5),
            "mae_int8_micro": round(self.mae_int8_micro, 5),
            "cost_percent": round(self.cost_percent, 3),
        }


@dataclass(frozen=True)
class Agreement:
    """Difference between two runtimes' latents in int8 steps; fractions are of all values."""

    latents: int
    differing_fraction: float
    max_difference_lsb: int
    beyond_one_step_fraction: float


@dataclass(frozen=True)
class Verification:
    """All measurements on the test data.

    Attributes:
        xnnpack: LiteRT with XNNPACK against LiteRT without.
        tflm: TFLite-Micro against LiteRT without XNNPACK; None if TFLite-Micro was not run.
        mae_by_rate: Error with all Linux devices at one rate, for each rate of the model.
        mae_mean_map: Error of predicting the mean map of the other samples, which needs no recording. A model must be
            better. Infinite for a single sample.
    """

    sqnr_db: float
    overall: MapError
    families: dict[str, MapError]
    xnnpack: Agreement
    tflm: Agreement | None
    input_at_limit_fraction: float
    mae_by_rate: dict[Rate, float]
    mae_mean_map: float

    @property
    def warnings(self) -> list[str]:
        """Warnings about these figures, to be read before the model is used."""
        found = []
        if self.overall.n < MIN_TEST_SAMPLES:
            found.append(
                f"only {self.overall.n} test samples; expected at least {MIN_TEST_SAMPLES} for a reliable error, give "
                "--held-out"
            )
        if self.worse_than_mean_map:
            found.append(self.comparison)
        return found

    @property
    def worse_than_mean_map(self) -> bool:
        """True if the mean map, which needs no recording, is as good."""
        return max(self.overall.mae_int8, self.overall.mae_int8_micro) >= self.mae_mean_map

    @property
    def comparison(self) -> str:
        """Comparison of the model's error with the mean map's, with a remedy."""
        return (
            f"the model is no better than the mean map: MAE {self.overall.mae_int8:.4f}, that of the mean map is "
            f"{self.mae_mean_map:.4f} on {self.overall.n} test samples; train longer, or on data like these"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, for a manifest or ``--json``."""
        return {
            "latent_sqnr_db": round(self.sqnr_db, 2),
            "overall": self.overall.to_dict(),
            "mae_mean_map": round(self.mae_mean_map, 5) if self.overall.n > 1 else None,
            "warnings": self.warnings,
            "families": {name: error.to_dict() for name, error in self.families.items()},
            "input_at_limit_fraction": self.input_at_limit_fraction,
            "xnnpack_against_litert": asdict(self.xnnpack),
            "tflm_against_litert": asdict(self.tflm) if self.tflm else None,
            "rates": [
                {
                    "latent_bytes": rate.payload_bytes,
                    "values": rate.values,
                    "bits": rate.bits,
                    "mae": round(mae, 5),
                }
                for rate, mae in self.mae_by_rate.items()
            ],
        }


def float_latents(encoder: Any, parts: np.ndarray | Parts, batch: int = 64) -> np.ndarray:
    """Return float latents of the Keras encoder: ``(n, time, width, sources)`` -> ``(n, latent)``.

    Raises:
        ConversionError: The latents are not finite or hardly vary between inputs.
    """
    latents = np.concatenate(
        [np.asarray(encoder(parts[i : i + batch], training=False)) for i in range(0, len(parts), batch)]
    )
    if not np.isfinite(latents).all():
        raise ConversionError(
            "encoder: expected finite latents, got NaN or infinity; training has diverged, "
            "take an earlier checkpoint"
        )
    peak = float(np.abs(latents).max())
    variation = float(np.sqrt(np.mean((latents - latents.mean(axis=0)) ** 2)))
    if variation * 255 < peak or peak == 0.0:
        raise ConversionError(
            f"encoder: its latent hardly depends on its input (varies by {variation:.2g} about values up "
            f"to {peak:.2g}, less than one int8 step); it has collapsed, train again"
        )
    return latents


def centred_sqnr_db(reference: np.ndarray, approximation: np.ndarray) -> float:
    """Return the signal-to-quantisation-noise ratio of ``(n, latent)`` arrays in dB.

    The mean latent is subtracted first.
    """
    signal = reference - reference.mean(axis=0)
    noise = approximation - reference
    return float(10 * np.log10(np.sum(signal**2) / max(float(np.sum(noise**2)), np.finfo(np.float64).tiny)))


def verify(
    encoder: Any,
    int8: Int8Encoder,
    decoder: Decoder,
    held_out: HeldOut,
    on_step: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Compare ``int8`` with its Keras ``encoder`` on ``held_out``, through ``decoder``.

    TFLite-Micro is run if the encoder's arena is known. The gate on the map error is ``check_gate``.

    Raises:
        ConversionError: The encoder has collapsed, or the runtimes differ by more than rounding.
    """
    n, n_devices = len(held_out), len(held_out.parts) // len(held_out)
    on_step("float encoder")
    reference = float_latents(encoder, held_out.parts)
    on_step("int8 encoder in LiteRT")
    codes = held_out.parts.codes(*int8.input_quantisation)
    in_litert = litert.run(int8.model, codes)
    in_kernels = litert.run(int8.model, codes, xnnpack=False)
    agreement = None
    if int8.assessment.arena_bytes is not None:
        on_step("int8 encoder in TFLite-Micro")
        agreement = _tflm_agreement(int8.model, int8.assessment.arena_bytes, codes, in_kernels)
    on_step("decoded maps")
    restored = dequantise(in_litert, *int8.output_quantisation)
    errors = [
        map_errors(decoder, latents.reshape(n, n_devices, -1), held_out)
        for latents in (reference, restored, dequantise(in_kernels, *int8.output_quantisation))
    ]
    whole, *lower = decoder.coding.rates
    mae_by_rate = {whole: float(errors[1].mean())}
    for rate in lower:
        on_step(f"latents of {rate.payload_bytes} bytes")
        received = np.stack([decoder.coding.unpack(pack(latent, rate)) for latent in in_litert])
        latents = dequantise(received, *int8.output_quantisation).reshape(n, n_devices, -1)
        mae_by_rate[rate] = float(map_errors(decoder, latents, held_out).mean())
    everything = np.ones(n, dtype=bool)
    return Verification(
        sqnr_db=centred_sqnr_db(reference, restored),
        overall=_map_error(errors, everything),
        families={
            str(name): _map_error(errors, held_out.families == name) for name in np.unique(held_out.families)
        },
        xnnpack=compare(in_litert, in_kernels),
        tflm=agreement,
        input_at_limit_fraction=float(np.mean((codes == -128) | (codes == 127))),
        mae_by_rate=mae_by_rate,
        mae_mean_map=mean_map_error(held_out.maps),
    )


def _tflm_agreement(model: bytes, arena_bytes: int, codes: np.ndarray, in_kernels: np.ndarray) -> Agreement:
    """Compare TFLite-Micro with LiteRT's kernels on the first parts.

    Args:
        model: The int8 encoder.
        arena_bytes: Size of its tensor arena.
        codes: Its inputs, ``(n, T', width, S)`` int8.
        in_kernels: LiteRT's latents of them, ``(n, latent)`` int8.

    Raises:
        ConversionError: They differ by more than rounding.
    """
    in_tflm = tflm.run(model, codes[:TFLM_LATENTS], arena_bytes)
    agreement = compare(in_tflm, in_kernels[:TFLM_LATENTS])
    if (
        agreement.max_difference_lsb > MAX_RUNTIME_DIFFERENCE_LSB
        or agreement.beyond_one_step_fraction > MAX_BEYOND_ONE_STEP_FRACTION
    ):
        raise ConversionError(
            f"TFLite-Micro and LiteRT differ by up to {agreement.max_difference_lsb} int8 steps, by more than one "
            f"in {agreement.beyond_one_step_fraction:.2%} of the values; expected at most "
            f"{MAX_RUNTIME_DIFFERENCE_LSB} and {MAX_BEYOND_ONE_STEP_FRACTION:.2%}; an operator differs"
        )
    return agreement


def int8_latents(int8: Int8Encoder, parts: Parts) -> np.ndarray:
    """Return the dequantised latents that the centre receives for ``parts``: float32 ``(n, n_devices, latent)``."""
    latent = int8.graph.outputs[0].shape[-1]
    shape = (len(parts.gathers), parts.acquisition.n_devices, latent)
    if not len(parts):
        return np.zeros(shape, np.float32)
    codes = parts.codes(*int8.input_quantisation)
    return dequantise(litert.run(int8.model, codes), *int8.output_quantisation).reshape(shape)


def golden_vectors(int8: Int8Encoder, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and latents of ``encode_vectors``: a few test parts, in three arithmetics.

    These are XNNPACK, LiteRT's own kernels, and its reference kernels. Stock MicroPython equals the last bit for bit.
    """
    chosen = np.arange(len(held_out.parts))[:: max(1, len(held_out.parts) // GOLDEN_VECTORS)][:GOLDEN_VECTORS]
    codes = quantise(held_out.parts[chosen], *int8.input_quantisation)
    latents = [
        litert.run(int8.model, codes),
        litert.run(int8.model, codes, xnnpack=False),
        reference_latents(int8.model, codes),
    ]
    return codes, np.stack(latents)


def check_gate(verification: Verification, max_cost_percent: float = MAX_MAE_COST_PERCENT) -> None:
    """Raise ``ConversionError`` if int8 increases the map error beyond the limit, or the mean map is as good."""
    overall = verification.overall
    if overall.n >= MIN_TEST_SAMPLES and verification.worse_than_mean_map:
        raise ConversionError(verification.comparison)
    if not overall.cost_percent <= max_cost_percent:
        in_int8 = max(overall.mae_int8, overall.mae_int8_micro)
        raise ConversionError(
            f"int8 raises the error of the decoded map by {overall.cost_percent:.1f} % "
            f"(MAE {overall.mae_float:.4f} -> {in_int8:.4f} on {overall.n} held-out samples), "
            f"allowed are {max_cost_percent:g} %; train longer or widen the representative set"
        )


def mean_map_error(maps: np.ndarray) -> float:
    """MAE of predicting each of ``maps (n, n_depth, n_width)`` by the mean of the others; inf for n = 1."""
    n = len(maps)
    if n < 2:
        return float("inf")
    return float(np.abs(maps - maps.mean(axis=0)).mean()) * n / (n - 1)


def map_errors(decoder: Decoder, latents: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Return the MAE of each decoded map, ``(n,)``, with all devices present.

    ``latents`` are ``(n, n_devices, latent)`` float32.
    """
    predicted = []
    for start in range(0, len(latents), DECODE_BATCH):
        batch = latents[start : start + DECODE_BATCH]
        velocity_mps, _ = decoder.decode_float(batch, np.ones(batch.shape[:2], dtype=bool))
        predicted.append(normalise_velocity(velocity_mps[:, 0], decoder.acquisition))
    return np.abs(np.concatenate(predicted) - held_out.maps).mean(axis=(1, 2))


def compare(latents: np.ndarray, reference: np.ndarray) -> Agreement:
    """Compare ``latents`` with ``reference``, both ``(n, latent)`` int8."""
    difference = np.abs(latents.astype(np.int16) - reference.astype(np.int16))
    return Agreement(
        latents=len(latents),
        differing_fraction=float(np.mean(difference > 0)),
        max_difference_lsb=int(difference.max()),
        beyond_one_step_fraction=float(np.mean(difference > 1)),
    )


def _map_error(errors: list[np.ndarray], chosen: np.ndarray) -> MapError:
    in_float, in_int8, in_micro = (float(values[chosen].mean()) for values in errors)
    return MapError(n=int(chosen.sum()), mae_float=in_float, mae_int8=in_int8, mae_int8_micro=in_micro)
