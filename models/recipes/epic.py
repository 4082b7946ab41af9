"""EPIC: an encoder on every device, a fusion decoder at the centre."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, ClassVar

import keras
import numpy as np

from firmware_py.inference.companding import Companding
from models.data.batches import DROP_OUT_SHARE, EpicBatches
from models.data.gathers import DecimatedSet
from models.errors import TrainingError
from models.evaluation.macs import count_macs
from models.networks.encoder import EncoderConfig, encoder_preset
from models.networks.fusion import DECODERS, DecoderConfig
from models.networks.nested_latent import nest_latent
from models.networks.network import build_network, map_loss
from models.recipes.base import Account, Recipe, describe_companding, fitting
from models.training.budget import Budget
from models.training.request import Setting, TrainRequest
from models.training.run_config import RunConfig
from models.training.standard_scale import standardise
from models.training.training import has_checkpoint
from models.training.warm_start import Origin, begin_with, fits_decoder
from physics.acquisition import Acquisition

# Encoder and decoder of a new run.
DEFAULT_PRESET = "small"
# Components that --ablate can remove.
PARTS = ("attention", "positions", "drop-out")


class Epic(Recipe):
    kind = "epic"
    optimiser: ClassVar[str] = "muon"
    loss: ClassVar[Any] = staticmethod(map_loss)

    def validate(self, request: TrainRequest) -> None:
        self._check_source(request)
        if request.budget.quantised and request.start_from is None and not has_checkpoint(request.run):
            raise TrainingError(
                "train: quantised training refines a trained EPIC run, whose batch normalisation it keeps; name it "
                "with --start-from"
            )
        if request.budget.ordered and request.ablate == "attention":
            raise TrainingError(
                "train: only an EPIC run with attention has nested latents; leave out --nested"
            )
        if request.ablate is not None and request.ablate not in PARTS:
            raise TrainingError(f"train: expected --ablate of {', '.join(PARTS)}; got {request.ablate!r}")

    def plan(
        self, request: TrainRequest, acquisition: Acquisition, found: RunConfig | None
    ) -> dict[str, dict | None]:
        if found and found.encoder and request.encoder is None:
            shape = EncoderConfig.from_dict(found.encoder)
        else:
            shape = encoder_preset(request.encoder or DEFAULT_PRESET, acquisition, request.decimation)
        if found and EncoderConfig.from_dict(found.encoder or {}) != shape:
            raise TrainingError(
                f"{request.run}: holds a run of another encoder than {request.encoder!r}; choose an empty folder"
            )
        if found and found.decoder and request.decoder is None:
            fusion = DecoderConfig(**found.decoder)
        else:
            with fitting():
                fusion = DecoderConfig(
                    acquisition.n_devices,
                    shape.latent,
                    acquisition.n_depth,
                    acquisition.n_width,
                    attention=request.ablate != "attention",
                    positions=request.ablate != "positions",
                    **DECODERS[request.decoder or DEFAULT_PRESET],
                )
        if found and DecoderConfig(**(found.decoder or {})) != fusion:
            raise TrainingError(
                f"{request.run}: holds a run of another decoder than {request.decoder!r}; choose an empty folder"
            )
        return {"encoder": asdict(shape), "decoder": asdict(fusion)}

    def describe(self, request: TrainRequest, setting: Setting, found: RunConfig | None) -> dict[str, Any]:
        return {"companding": describe_companding(request, setting, found), "log_range": None}

    def build(
        self, config: RunConfig, acquisition: Acquisition, quantised: bool = False, nested: bool = False
    ) -> tuple[keras.Model, dict[str, keras.Model]]:
        assert config.encoder and config.decoder
        network, encoder, decoder = build_network(
            acquisition,
            EncoderConfig.from_dict(config.encoder),
            DecoderConfig(**config.decoder),
            quantised,
            nested,
        )
        return network, {"encoder": encoder, "decoder": decoder}

    def make_batches(self, config: RunConfig, decimated: DecimatedSet, nested: bool = False) -> EpicBatches:
        assert config.companding and config.decoder
        latent = config.decoder["latent"] if nested else None
        share = 0.0 if config.without == "drop-out" else DROP_OUT_SHARE
        return EpicBatches(decimated, Companding.from_dict(config.companding), latent, share)

    def prepare_on_device(self, config: RunConfig, budget: Budget) -> tuple[Any, Any]:
        from models.training.on_device import prepare_parts

        assert config.companding and config.decoder
        latent = config.decoder["latent"] if budget.ordered else None
        acquisition = Acquisition.from_dict(config.acquisition)
        return prepare_parts(acquisition, Companding.from_dict(config.companding), latent), map_loss

    def account(self, parts: dict[str, keras.Model], acquisition: Acquisition) -> Account:
        encoder = parts["encoder"]
        return Account(acquisition.n_devices * encoder.output_shape[-1], count_macs(encoder))


def begin(
    origin: Origin, parts: dict[str, keras.Model], plain: tuple[dict, np.ndarray], budget: Budget
) -> None:
    """Load the weights of ``origin`` into a run's networks.

    Args:
        plain: Batch for measuring the statistics of batch normalisation again.
    """
    seen = plain[0]["parts"]
    seen = seen.reshape(-1, *seen.shape[2:])
    goes_on = fits_decoder(origin, parts["decoder"])
    begin_with(origin if goes_on else replace(origin, decoder={}), parts["encoder"], parts["decoder"], seen)
    if origin.folded:
        standardise(parts["encoder"], parts["decoder"], seen)
    if budget.ordered and goes_on:
        nest_latent(parts["encoder"], parts["decoder"], seen)
