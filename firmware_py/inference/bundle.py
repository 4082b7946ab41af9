"""Read and write bundles, the folders that put a model on a device. ``manifest.json`` has every file's SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_py.errors import FirmwareError
from firmware_py.inference.companding import Companding
from firmware_py.protocol.rate import Coding, RateError, read_coding

FORMAT = "epic-bundle/1"
ENCODER = "encoder.tflite"
# The same encoder for stock MicroPython (``boards/fit/epicnn.py``).
EPICNN = "encoder.epicnn"
MANIFEST = "manifest.json"


class BundleError(FirmwareError, ValueError):
    """A bundle is missing, damaged, or not one."""


@dataclass(frozen=True)
class Tensor:
    """Shape and int8 quantisation of a model's input or output: real = (q - zero_point) * scale."""

    shape: tuple[int, ...]
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. ``model_hash`` is the first 8 bytes of the encoder's SHA-256."""

    folder: Path
    encoder_path: Path
    model_hash: bytes
    input: Tensor
    output: Tensor
    companding: Companding
    coding: Coding
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", self.folder.name))

    @property
    def width(self) -> int:
        """Receivers the encoder takes."""
        return self.input.shape[2]


def compiled_encoder(accelerator: str) -> str:
    """Return the bundle's encoder file compiled for an accelerator ("edgetpu", "vela")."""
    return f"encoder_{accelerator}.tflite"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def load_bundle(folder: Path | str) -> Bundle:
    """Read and verify a bundle folder; nothing is used before it is checked.

    Raises:
        BundleError: The bundle is missing or damaged.
    """
    folder = Path(folder)
    try:
        return _verify(folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror}); copy the bundle again") from None


def _verify(folder: Path) -> Bundle:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{path}: not found; expected a bundle folder as `epic convert` writes it")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise BundleError(f"{path}: expected format {FORMAT}, got {manifest['format']}; update EPIC")
        tensors = {
            name: Tensor(
                tuple(int(n) for n in manifest[name]["shape"]),
                float(manifest[name]["scale"]),
                int(manifest[name]["zero_point"]),
            )
            for name in ("input", "output")
        }
        if len(tensors["input"].shape) != 4 or len(tensors["output"].shape) != 2:
            raise ValueError("expected input (1, time, receivers, sources), output (1, latent)")
        companding = Companding.from_dict(manifest["companding"])
        coding = read_coding(manifest, tensors["output"].shape[1], tensors["output"].zero_point)
        files = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
        model_hash = bytes.fromhex(manifest["model_hash"])
    except BundleError:
        raise
    except RateError as error:
        raise BundleError(f"{path}: {error}; convert again") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path}: not a whole manifest ({error!r}); copy the bundle again") from None
    if ENCODER not in files:
        raise BundleError(f"{path}: names no {ENCODER}; convert again")
    for name, expected in files.items():
        if Path(name).name != name:
            raise BundleError(
                f"{path}: file name {name!r} leaves the bundle's folder; do not use this bundle"
            )
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: not found, but the manifest names it; copy the bundle again")
        found = _sha256((folder / name).read_bytes())
        if found != expected:
            raise BundleError(
                f"{folder / name}: SHA-256 is {found[:16]}…, the manifest says {expected[:16]}…; "
                "the file is damaged or from another bundle, copy the bundle again"
            )
    if model_hash.hex() != files[ENCODER][:16]:
        raise BundleError(f"{path}: model_hash {model_hash.hex()} is not that of {ENCODER}; convert again")
    return Bundle(
        folder,
        folder / ENCODER,
        model_hash,
        tensors["input"],
        tensors["output"],
        companding,
        coding,
        manifest,
    )


def create_bundle(
    folder: Path, encoder: bytes, fields: dict[str, Any], extra: dict[str, bytes] | None = None
) -> Bundle:
    """Write a bundle folder completely or not at all; an existing bundle of that name is replaced.

    ``fields`` are the manifest's entries except ``format``, ``model_hash`` and ``files``, which are computed here;
    ``extra`` holds further files by name.
    """
    contents = {ENCODER: encoder, **(extra or {})}
    digest = _sha256(encoder)
    manifest = {
        "format": FORMAT,
        **fields,
        "model_hash": digest[:16],
        "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in contents.items()},
    }
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, data in contents.items():
        (fresh / name).write_bytes(data)
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    load_bundle(fresh)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        os.replace(fresh, folder)
        shutil.rmtree(old)
    else:
        os.replace(fresh, folder)
    return load_bundle(folder)


def copy_for_decoder(bundle: Bundle, folder: Path, decoder_sha256: str, metrics: dict[str, Any]) -> Bundle:
    """Copy a bundle into the new ``folder``, naming another decoder of the same encoder; ``metrics`` are added."""
    shutil.copytree(bundle.folder, folder)
    manifest = {
        **bundle.manifest,
        "decoder_sha256": decoder_sha256,
        "metrics": {**bundle.manifest.get("metrics", {}), **metrics},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return load_bundle(folder)
