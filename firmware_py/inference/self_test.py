"""Test that a bundle gives the same latents on this device as where it was converted."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from firmware_py.errors import FirmwareError
from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.inference.companding import GatherError
from firmware_py.inference.encoder import Encoder, EncoderError

VECTORS = "vectors.npz"
TOLERANCE_LSB = 1


class SelfTestError(FirmwareError, RuntimeError):
    """The bundle does not run here, or gives other latents than where it was converted."""


def encode_vectors(inputs: np.ndarray, latents: np.ndarray) -> bytes:
    """Golden vectors as the bundle's file ``vectors.npz``; the same arrays give the same bytes.

    ``inputs`` int8 ``(n, T', width, S)``; ``latents`` int8 ``(arithmetics, n, latent)``, one for each way in
    which a runtime may round: XNNPACK's, LiteRT's own, and its reference kernels'. A Linux device has to agree with one
    of them within ``TOLERANCE_LSB``; a board with stock MicroPython equals the last (``boards/fit/epicnn.py``).
    """
    file = io.BytesIO()
    np.savez_compressed(file, inputs=inputs, latents=latents)
    return file.getvalue()


def read_vectors(bundle: Bundle) -> tuple[np.ndarray, np.ndarray] | None:
    """Return ``(inputs, latents)`` of ``encode_vectors``, or None for a bundle without.

    Raises:
        SelfTestError: The file is damaged.
    """
    if VECTORS not in bundle.manifest["files"]:
        return None
    try:
        with np.load(bundle.folder / VECTORS, allow_pickle=False) as arrays:
            inputs, latents = arrays["inputs"], arrays["latents"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SelfTestError(
            f"{bundle.folder / VECTORS}: no golden vectors ({error!r}); convert again"
        ) from None
    if (
        inputs.dtype != np.int8
        or latents.dtype != np.int8
        or not len(inputs)
        or inputs.shape[1:] != bundle.input.shape[1:]
        or latents.ndim != 3
        or not len(latents)
        or latents.shape[1:] != (len(inputs), bundle.output.shape[1])
    ):
        raise SelfTestError(
            f"{bundle.folder / VECTORS}: expected int8 inputs (n, {bundle.input.shape[1:]}) and latents "
            f"(arithmetics, n, {bundle.output.shape[1]}), got {inputs.dtype} {inputs.shape} and "
            f"{latents.dtype} {latents.shape}; convert again"
        )
    return inputs, latents


def self_test(bundle: Bundle, accelerator: str = "") -> None:
    """Encode silence and the bundle's golden vectors on ``accelerator`` (see ``Encoder``).

    The files' hashes are verified again, which detects damage by a failing disk.

    Raises:
        SelfTestError: The latents differ from the golden ones.
        BundleError: The bundle is damaged.
    """
    bundle = load_bundle(bundle.folder)
    try:
        encoder = Encoder(bundle, accelerator)
        _, width, n_sources = bundle.input.shape[1:]
        n_time = bundle.input.shape[1] * bundle.companding.thin
        silent = encoder.encode_recording(np.zeros((n_sources, n_time, width), np.float32))
    except (EncoderError, GatherError) as error:
        raise SelfTestError(str(error)) from None
    if silent.dtype != np.int8 or silent.shape != bundle.output.shape[1:]:
        raise SelfTestError(
            f"{bundle.folder}: expected an int8 latent {bundle.output.shape[1:]}, got {silent.dtype} {silent.shape}"
        )
    vectors = read_vectors(bundle)
    if vectors is None:
        return
    inputs, expected = vectors
    got = np.stack([encoder.encode(codes).copy() for codes in inputs]).astype(np.int16)
    apart_lsb = int(np.abs(expected.astype(np.int16) - got).max(axis=(1, 2)).min())
    if apart_lsb > TOLERANCE_LSB:
        raise SelfTestError(
            f"{bundle.folder}: golden vectors come out {apart_lsb} int8 steps from where the bundle was made, "
            f"expected at most {TOLERANCE_LSB}; this device's TFLite runtime computes something else"
        )
