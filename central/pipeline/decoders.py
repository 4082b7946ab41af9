"""Load the decoders of the centre's models, each with its bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from central.config import CentralConfig, ModelSection
from central.learning.versions import section_in_use
from firmware_py.inference.bundle import Bundle, BundleError, load_bundle
from firmware_py.protocol.rate import Coding, Rate
from physics.acquisition import Acquisition

if TYPE_CHECKING:
    from models.inversion.decoder import Decoder


class MapDecoder(Protocol):
    """Decoder interface of the centre; ``models.inversion.decoder.Decoder`` implements it.

    ``adaptation`` describes an adapted decoder (`epic central adapt`); None for a released one.
    """

    n_devices: int
    latent: int
    coding: Coding
    sha256: str
    acquisition: Acquisition
    folder: Path
    adaptation: dict[str, Any] | None

    def decode_batch(
        self, latents_int8: np.ndarray, present: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def ood_score(
        self, latents_int8: np.ndarray, present: np.ndarray, rates: Sequence[Rate]
    ) -> tuple[float, float] | None: ...


def load_models(config: CentralConfig) -> dict[bytes, MapDecoder]:
    """Load every [[model]], or the adapted decoder in its place, and return the decoders by model hash.

    Raises:
        AdaptationError: The list of versions in use cannot be read.
        BundleError: A bundle is damaged.
        DecoderError: A decoder is damaged or does not match (``models.inversion.decoder``).
    """
    decoders: dict[bytes, MapDecoder] = {}
    for section in config.model:
        model_hash, decoder = load_in_use(config.central.data_dir, section)
        if model_hash in decoders:
            raise BundleError(
                f"{section.bundle}: encoder {model_hash.hex()} has a [[model]] already; remove one"
            )
        decoders[model_hash] = decoder
    return decoders


def load_in_use(data_dir: Path, section: ModelSection) -> tuple[bytes, MapDecoder]:
    """Load the release ``section``, or the adapted decoder in its place; for errors see ``load_models``."""
    return load_release(section_in_use(data_dir, section))


def released_sha256(decoder: MapDecoder) -> str:
    """Return the SHA-256 of the released decoder from which ``decoder`` was adapted, or its own."""
    return (decoder.adaptation or {}).get("released_sha256", decoder.sha256)


def load_release(section: ModelSection) -> tuple[bytes, MapDecoder]:
    """Load one release, check the decoder against its bundle, and compile it with a first decode.

    Returns:
        Model hash and decoder.

    Raises:
        BundleError: The bundle is damaged.
        DecoderError: The decoder is damaged or does not match (``models.inversion.decoder``).
    """
    bundle, decoder = open_release(section)
    silence = np.zeros((1, decoder.n_devices, decoder.latent), np.int8)
    decoder.decode_batch(silence, np.ones((1, decoder.n_devices), bool))
    return bundle.model_hash, decoder


def open_release(section: ModelSection) -> tuple[Bundle, Decoder]:
    """Open a bundle and its matching decoder.

    Raises:
        BundleError: The bundle is damaged.
        DecoderError: The decoder is damaged or does not match (``models.inversion.decoder``).
    """
    from models.inversion.decoder import load_decoder

    bundle = load_bundle(section.bundle)
    decoder = load_decoder(section.decoder)
    expected = bundle.manifest.get("decoder_sha256")
    if decoder.sha256 != expected or decoder.model_hash != bundle.model_hash.hex():
        raise BundleError(
            f"{section.decoder}: decoder {decoder.sha256[:16]}… of encoder {decoder.model_hash} does not "
            f"belong to {section.bundle} ({str(expected)[:16]}… of {bundle.model_hash.hex()}); "
            "give a bundle and a decoder from one conversion"
        )
    if decoder.coding != bundle.coding:
        raise BundleError(
            f"{section.decoder}: reads latents of {decoder.coding}, {section.bundle} sends {bundle.coding}; "
            "give a bundle and a decoder from one conversion"
        )
    return bundle, decoder
