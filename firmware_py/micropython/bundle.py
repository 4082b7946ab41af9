"""A bundle on a board: the numbers of its manifest, and its encoder, verified by SHA-256."""

import binascii
import gc
import hashlib
import json
import os

from firmware_py.micropython.errors import SetupError
from firmware_py.micropython.padding import length_of
from firmware_py.micropython.rate import rates_of

FORMAT = "epic-bundle/1"
CHUNK_BYTES = 512


class BundleError(SetupError):
    """The bundle is missing, damaged, or not one."""


class Bundle:
    """Fields of a bundle that the loop needs.

    ``model_hash`` is the first 8 bytes of the encoder's SHA-256. ``encoder_path`` is the encoder for ``ml``,
    ``compiled_path`` the one for viper; None if absent.
    """

    def __init__(self, manifest, encoder_path, compiled_path):
        self.encoder_path = encoder_path
        self.compiled_path = compiled_path
        self.model_hash = binascii.unhexlify(manifest["model_hash"])
        _, self.time, self.width, self.sources = manifest["input"]["shape"]
        self.input_scale = float(manifest["input"]["scale"])
        self.input_zero_point = int(manifest["input"]["zero_point"])
        _, self.latent = manifest["output"]["shape"]
        self.output_scale = float(manifest["output"]["scale"])
        self.output_zero_point = int(manifest["output"]["zero_point"])
        self.rates = rates_of(self.latent, manifest.get("prefixes", ()))
        self.k = float(manifest["companding"]["k"])
        self.c = float(manifest["companding"]["c"])
        self.thin = int(manifest["companding"]["thin"])
        survey = manifest["acquisition"]
        self.samples = int(survey["n_time"])
        # Number of receivers of each device in the survey.
        self.receivers = [len(group) for group in survey["device_receivers"]]
        if not (self.k > 0 and self.c > 0 and self.thin > 0 and len(self.model_hash) == 8):
            raise ValueError("companding or model_hash")
        if self.samples // self.thin != self.time or len(survey["source_cells"]) != self.sources:
            raise ValueError("acquisition is not that of the input")


def load_bundle(folder):
    """Read and verify a bundle folder. Raises ``BundleError``."""
    path = folder + "/manifest.json"
    encoder_path = _there(folder + "/encoder.tflite")
    compiled_path = _there(folder + "/encoder.epicnn")
    try:
        with open(path, "rb") as file:
            manifest = json.loads(file.read(length_of(file)))
        if manifest["format"] != FORMAT:
            raise BundleError("%s: expected format %s, got %s" % (path, FORMAT, manifest["format"]))
        bundle = Bundle(manifest, encoder_path, compiled_path)
        expected = manifest["files"]["encoder.tflite"]["sha256"]
    except BundleError:
        raise
    except OSError:
        raise BundleError("%s: not found; copy the bundle that `epic convert` wrote" % path) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError("%s: not a whole manifest (%r); copy the bundle again" % (path, error)) from None
    del manifest
    gc.collect()
    if not encoder_path:
        # A compiled encoder carries its own hash, which ViperModel checks.
        if not compiled_path:
            raise BundleError("%s: no encoder.tflite and no encoder.epicnn; copy the bundle again" % folder)
        return bundle
    found = _sha256(encoder_path)
    if found != expected or found[:16] != binascii.hexlify(bundle.model_hash).decode():
        raise BundleError(
            "%s: SHA-256 is %s..., the manifest says %s...; the file is damaged or another's, copy it again"
            % (encoder_path, found[:16], expected[:16])
        )
    return bundle


def _there(path):
    """``path``, None where there is no such file."""
    try:
        os.stat(path)
    except OSError:
        return None
    return path


def _sha256(path):
    """SHA-256 of a file in hex, read in small pieces."""
    digest = hashlib.sha256()
    chunk = bytearray(CHUNK_BYTES)
    view = memoryview(chunk)
    try:
        with open(path, "rb") as file:
            left = length_of(file)
            while n := min(left, file.readinto(chunk)):
                digest.update(view[:n])
                left -= n
    except OSError:
        raise BundleError("%s: not found, but the manifest names it; copy the bundle again" % path) from None
    return binascii.hexlify(digest.digest()).decode()
