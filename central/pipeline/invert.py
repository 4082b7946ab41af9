"""Invert an archive of gathers on this machine, without devices and links.

The unit of work is a chunk of a file's events, always decoded together. The maps are therefore bit-identical on
one process and on any number of workers of a Dask cluster.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from central.config import ModelSection
from central.errors import CentralError
from central.pipeline.decoders import open_release
from firmware_py.inference.bundle import BundleError, load_bundle
from firmware_py.inference.companding import GatherError
from firmware_py.inference.encoder import Encoder
from physics.acquisition import Acquisition
from physics.cluster import on_cluster
from physics.files.atomic import atomic_write
from physics.files.openfwi_files import create_array, map_path_of, open_gathers
from physics.gather_checks import expected_peaks, notes_on

CHUNK_EVENTS = 16
# Velocity and uncertainty ``(2, count, 1, nz, nx)`` of a chunk in m/s, and notes on its gathers by their numbers.
_Inverted = tuple[np.ndarray, list[tuple[int, str]]]
WHAT = ("velocity", "uncertainty")
# An interpreter serves one thread at a time; a worker may have several threads.
_turn = threading.Lock()


class InvertError(CentralError, ValueError):
    """The archive cannot be inverted as asked."""


@dataclass(frozen=True)
class _Chunk:
    """Chunk of ``count`` events of ``path``, starting at event ``first``."""

    model: str
    path: str
    first: int
    count: int


def invert_archive(
    archive: Path,
    model: Path,
    out: Path,
    scheduler: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Path]:
    """Invert every gather of ``archive``, a .npy file or a folder of .npy files.

    For each gather file it writes NAME-velocity.npy and NAME-uncertainty.npy, float32 ``(n, 1, nz, nx)`` in m/s, in the
    archive's folder structure under ``out``, and one manifest.json. Existing maps are kept, so an interrupted run can
    be resumed.

    Args:
        model: Folder with bundle/ and decoder/.
        scheduler: Dask scheduler whose workers invert; they must see the archive and the model under the same paths.
        on_note: Called for gathers whose maps will be wrong: silent, reversed, or with another gain than the model's.

    Returns:
        The velocity files.

    Raises:
        InvertError: The archive cannot be inverted as asked.
        ClusterError: The Dask cluster cannot be used.
        GatherError: A gather cannot be encoded.
        BundleError: The model is damaged.
    """
    if archive.is_dir() and out.resolve().is_relative_to(archive.resolve()):
        raise InvertError(
            f"{out}: lies in the archive, whose gathers it would join; choose a folder elsewhere"
        )
    bundle = load_bundle(model / "bundle")
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    targets = {path: _target(archive, path, out) for path in find_gathers(archive)}
    counts = {path: len(open_gathers(path, acquisition)) for path in targets}
    if empty := [path for path, count in counts.items() if not count]:
        raise InvertError(f"{empty[0]}: holds no gathers; take it out of the archive")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, bundle.name, bundle.model_hash.hex(), archive)
    waiting = {path: count for path, count in counts.items() if not _files(targets[path])[-1].exists()}
    total = sum(counts.values())
    done = total - sum(waiting.values())
    on_progress(done, total)
    chunks = [
        _Chunk(str(model.resolve()), str(path.resolve()), first, min(CHUNK_EVENTS, count - first))
        for path, count in waiting.items()
        for first in range(0, count, CHUNK_EVENTS)
    ]
    by_name = {str(path.resolve()): path for path in waiting}
    left = dict(waiting)
    drawn: dict[Path, np.ndarray] = {}
    for chunk, (maps, notes) in _run(chunks, scheduler):
        path = by_name[chunk.path]
        for row, note in notes:
            on_note(f"{path}: gather {row}: {note}")
        whole = drawn.setdefault(path, np.empty((2, counts[path], *acquisition.map_shape), np.float32))
        whole[:, chunk.first : chunk.first + chunk.count] = maps
        left[path] -= chunk.count
        done += chunk.count
        on_progress(done, total)
        if not left[path]:
            _write(targets[path], drawn.pop(path))
    return [_files(target)[0] for target in targets.values()]


def find_gathers(archive: Path) -> list[Path]:
    """List the gather files of an archive: every .npy except maps, which are recognised by the benchmark's names.

    Raises:
        InvertError: The archive holds no gather.
    """
    if not archive.is_dir():
        return [archive]
    found = sorted(
        path
        for path in archive.rglob("*.npy")
        if not any(part.startswith(".") for part in path.relative_to(archive).parts)
    )
    maps = {map_path_of(path) for path in found}
    gathers = [path for path in found if path not in maps]
    if not gathers:
        raise InvertError(f"{archive}: expected .npy files of gathers in the folder, found none")
    return gathers


def _target(archive: Path, path: Path, out: Path) -> Path:
    return (out / path.relative_to(archive.parent if archive.is_file() else archive)).with_suffix("")


def _files(target: Path) -> list[Path]:
    """Return the velocity and uncertainty files. The one written last marks both as complete."""
    return [target.with_name(f"{target.name}-{what}.npy") for what in WHAT]


def _write(target: Path, maps: np.ndarray) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, values in zip(_files(target), maps, strict=True):
        with create_array(path, values.shape) as array:
            array[:] = values


def _claim(out: Path, name: str, model_hash: str, archive: Path) -> None:
    """Write the manifest, or check that the existing one names the same model and archive."""
    path = out / "manifest.json"
    wanted: dict[str, Any] = {
        "format": "epic-maps/1",
        "model": name,
        "model_hash": model_hash,
        "archive": str(archive.resolve()),
        "unit": "m/s",
    }
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InvertError(
                f"{path}: cannot be read ({error}); expected the manifest of maps, choose an empty folder"
            ) from None
        if differing := [key for key in wanted if found.get(key) != wanted[key]]:
            theirs = ", ".join(f"{key} {found[key]}" for key in differing if key in found)
            raise InvertError(
                f"{out}: expected an empty folder, or maps of the same archive and model; it holds maps of "
                f"{theirs or 'unknown origin'}; choose another --out"
            )
        return
    wanted["versions"] = {
        package: metadata.version(package) for package in ("epic-fwi", "numpy", "keras", "ai-edge-litert")
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2))


def _run(chunks: list[_Chunk], scheduler: str | None) -> Iterator[tuple[_Chunk, _Inverted]]:
    if scheduler:
        yield from on_cluster(scheduler, _invert, chunks)
    else:
        yield from ((chunk, _invert(chunk)) for chunk in chunks)


def _invert(chunk: _Chunk) -> _Inverted:
    """Invert a chunk, and note what is unusual in its gathers."""
    with _turn:
        encoder, decoder, acquisition = _open(chunk.model)
        gathers = open_gathers(Path(chunk.path), acquisition)
        groups = [list(group) for group in acquisition.device_receivers]
        latents = np.zeros((chunk.count, len(groups), decoder.latent), np.int8)
        companding = encoder.bundle.companding
        peaks = expected_peaks(math.sinh(companding.c) / companding.k)
        notes = []
        for row in range(chunk.count):
            gather = np.asarray(gathers[chunk.first + row], np.float32)
            for device, group in enumerate(groups):
                try:
                    latents[row, device] = encoder.encode_recording(gather[:, :, group])
                except GatherError as error:
                    raise InvertError(f"{chunk.path}: gather {chunk.first + row}: {error}") from None
            notes += [(chunk.first + row, note) for note in notes_on(gather, acquisition, peaks)]
        present = np.ones(latents.shape[:2], bool)
        return np.stack(decoder.decode_batch(latents, present)), notes


@lru_cache(maxsize=1)
def _open(model: str) -> tuple[Encoder, Any, Acquisition]:
    section = ModelSection(bundle=Path(model) / "bundle", decoder=Path(model) / "decoder")
    bundle, decoder = open_release(section)
    if decoder.n_devices != len(decoder.acquisition.device_receivers):
        raise BundleError(
            f"{model}: expected a decoder of its survey's devices, got one of {decoder.n_devices}"
        )
    return Encoder(bundle), decoder, decoder.acquisition
