"""The decoders of the centre's models, each with the bundle it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from central.config import CentralConfig, ModelSection
from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.protocol.rate import Coding, Rate
from physics.acquisition import Acquisition

if TYPE_CHECKING:
    from models.inversion.decoder import Decoder


class MapDecoder(Protocol):
    """What the centre asks of a decoder; ``models.inversion.decoder.Decoder`` is one."""

    n_devices: int
    latent: int
    coding: Coding
    sha256: str
    acquisition: Acquisition
    folder: Path

    def decode_batch(
        self, latents_int8: np.ndarray, present: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def unfamiliarity(
        self, latents_int8: np.ndarray, present: np.ndarray, rates: Sequence[Rate]
    ) -> tuple[float, float] | None: ...


def load_models(config: CentralConfig) -> dict[bytes, MapDecoder]:
    """Decoders by model hash, of every [[model]]. Raises ``BundleError`` or
    ``models.inversion.decoder.DecoderError``."""
    decoders: dict[bytes, MapDecoder] = {}
    for section in config.model:
        model_hash, decoder = load_release(section)
        if model_hash in decoders:
            raise BundleError(
                f"{section.bundle}: encoder {model_hash.hex()} has a [[model]] already; remove one"
            )
        decoders[model_hash] = decoder
    return decoders


def load_release(section: ModelSection) -> tuple[bytes, MapDecoder]:
    """Model hash and decoder, checked against its bundle and compiled by a first decode.

    Raises ``BundleError`` or ``models.inversion.decoder.DecoderError``.
    """
    bundle, decoder = open_release(section)
    silence = np.zeros((1, decoder.n_devices, decoder.latent), np.int8)
    decoder.decode_batch(silence, np.ones((1, decoder.n_devices), bool))
    return bundle.model_hash, decoder


def open_release(section: ModelSection) -> tuple[Bundle, Decoder]:
    """Bundle and decoder that belong together. Raises ``BundleError`` or ``models.inversion.decoder.DecoderError``."""
    from models.inversion.decoder import load_decoder

    bundle = load_bundle(section.bundle)
    decoder = load_decoder(section.decoder)
    expected = bundle.manifest.get("decoder_sha256")
    if decoder.sha256 != expected or decoder.model_hash != bundle.model_hash.hex():
        raise BundleError(
            f"{section.decoder}: decoder {decoder.sha256[:16]}… of encoder {decoder.model_hash} does not "
            f"belong to {section.bundle} ({str(expected)[:16]}… of {bundle.model_hash.hex()}); "
            "give a bundle and a decoder of one conversion"
        )
    if decoder.coding != bundle.coding:
        raise BundleError(
            f"{section.decoder}: reads latents of {decoder.coding}, {section.bundle} sends {bundle.coding}; "
            "give a bundle and a decoder of one conversion"
        )
    return bundle, decoder
