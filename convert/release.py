"""Write the folders of a released model, ``bundle/`` and ``decoder/``: stage them beside ``out``, then move them."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from boards.fit.graph import Tensor
from convert.c_array import c_sources
from convert.errors import ConversionError
from convert.int8_encoder import Int8Encoder
from convert.run_folder import Run
from firmware_py.inference.bundle import EPICNN, compiled_encoder, create_bundle
from firmware_py.inference.self_test import VECTORS, encode_vectors, self_test
from models.inversion.decoder import Decoder

# Files that identify a folder as the output of a conversion; only such folders may be replaced.
MARKS = {"decoder": "decoder.json", "bundle": "manifest.json"}
PACKAGES = (
    "epic-fwi",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "ai-edge-litert",
    "tflite-micro",
    "ethos-u-vela",
    "numpy",
)


@dataclass(frozen=True)
class Stage:
    """A staged release; nothing is at ``out`` before ``publish``."""

    folder: Path
    out: Path

    @property
    def decoder(self) -> Path:
        """Folder in which the decoder is staged."""
        return self.folder / "decoder"

    @property
    def bundle(self) -> Path:
        """Folder in which the device's bundle is staged."""
        return self.folder / "bundle"

    def write_bundle(
        self,
        run: Run,
        int8: Int8Encoder,
        decoder: Decoder,
        metrics: dict[str, Any],
        vectors: tuple[np.ndarray, np.ndarray],
        epicnn: bytes | None,
        c_array: bool,
    ) -> None:
        """Write the bundle: encoder, golden vectors and manifest. Then run the device's self-test on it.

        Args:
            run: The run that trained the encoder.
            int8: The encoder.
            decoder: The staged decoder.
            metrics: Figures for the manifest.
            vectors: Inputs and latents of ``convert.verify.golden_vectors``.
            epicnn: The encoder for stock MicroPython; None if it cannot run there.
            c_array: Add ``encoder.c`` and ``encoder.h``.
        """
        fields = {
            "name": self.out.resolve().name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "input": _tensor_entry(int8.graph.inputs[0]),
            "output": _tensor_entry(int8.graph.outputs[0]),
            "prefixes": [(rate.values, rate.bits) for rate in decoder.coding.prefixes],
            "companding": run.companding.to_dict(),
            "acquisition": run.acquisition.to_dict(),
            "decoder_sha256": decoder.sha256,
            "arena_bytes": int8.assessment.arena_bytes,
            "metrics": metrics,
            "versions": _versions(),
        }
        extra = {VECTORS: encode_vectors(*vectors)}
        if epicnn is not None:
            extra[EPICNN] = epicnn
        compiled = int8.assessment.compiled
        if compiled is not None:
            extra[compiled_encoder(compiled.suffix)] = compiled.model
        if c_array:
            # The hash remains that of encoder.tflite, which identifies the model at the centre.
            linked = compiled.model if compiled else int8.model
            extra |= c_sources(linked, {**fields, "model_hash": int8.hash}, vectors)
        self_test(create_bundle(self.bundle, int8.model, fields, extra))

    def publish(self) -> None:
        """Move both folders to ``out``; restore the previous ones if that fails."""
        self.out.mkdir(parents=True, exist_ok=True)
        moves = [(self.folder / name, self.out / name, self.folder / f"former-{name}") for name in MARKS]
        try:
            for staged, place, former in moves:
                if place.exists():
                    place.rename(former)
                staged.rename(place)
        # Ctrl-C too. The folders tell which moves are done.
        except BaseException:
            for staged, place, former in moves:
                if place.exists() and not staged.exists():
                    place.rename(staged)
                if former.exists():
                    former.rename(place)
            raise


@contextlib.contextmanager
def staged_release(out: Path) -> Iterator[Stage]:
    """Yield a ``Stage`` for ``out`` and always remove it afterwards.

    Raises:
        ConversionError: ``out`` is a file, or holds a ``bundle`` or ``decoder`` that no conversion wrote.
    """
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out}: expected a folder or a new name, got a file; choose another --out")
    for name, mark in MARKS.items():
        folder = out / name
        if folder.exists() and not (folder / mark).is_file():
            raise ConversionError(
                f"{folder}: exists and was not written by `epic convert` (no {mark}); choose another --out"
            )
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".epic-convert-", dir=parent) as temporary:
        yield Stage(Path(temporary), out)


def _tensor_entry(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "scale": tensor.scale, "zero_point": tensor.zero_point}


def _versions() -> dict[str, str]:
    """Return the versions of the packages that made the bundle; missing packages are omitted."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
