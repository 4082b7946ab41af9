"""Generate data sets in OpenFWI's layout: parallel, resumable and reproducible.

The unit of work is a chunk of a few samples. A worker draws its maps, models its gathers and saves both as finished
files in ``.parts/``. A file of the set is assembled when all its chunks exist. A killed run resumes where it stopped. A
map depends on (family, seed, index) alone, so the files are the same for any number of workers, local or on a Dask
cluster.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.cluster import on_cluster
from physics.errors import PhysicsError
from physics.families import check_family, generate_map
from physics.files.atomic import atomic_write
from physics.files.json_keys import has_keys
from physics.files.openfwi_files import create_array, family_file_names, family_folder, twins_path_of
from physics.modelling import check_engine, require_engine

CHUNK_SAMPLES = 20
FILE_SAMPLES = 500


class DatasetError(PhysicsError, ValueError):
    """A data set cannot be generated or continued as requested."""


def check_seed(seed: int) -> int:
    """Return a valid seed, or raise ``DatasetError``."""
    if seed < 0:
        raise DatasetError(f"seed: expected 0 or more, got {seed}; choose another --seed")
    return seed


@dataclass(frozen=True)
class DatasetRequest:
    """Samples ``first .. first + count - 1`` of each family's sequence for ``seed``.

    Attributes:
        families: Families by name; repeated ones are generated once.
        engine: Engine that models the gathers.
        twins: Also model shots from ``acquisition.twin_cells`` and store them beside each gather file, so that training
            can mirror exactly.
    """

    families: tuple[str, ...]
    count: int
    seed: int
    acquisition: Acquisition
    engine: str = "openfwi"
    first: int = 0
    twins: bool = False


@dataclass(frozen=True)
class _Chunk:
    """``count`` samples from ``first`` of one family, for file ``file_index`` of the set ``request``."""

    family: str
    file_index: int
    first: int
    count: int
    parts: str
    request: DatasetRequest

    def path(self, what: str) -> Path:
        return Path(self.parts) / f"{self.family}-{self.first:06d}-{self.count}-{what}.npy"


def generate_dataset(
    request: DatasetRequest,
    out: Path,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    scheduler: str | None = None,
) -> list[Path]:
    """Write the samples of ``request`` under ``out`` and return the gather files.

    A file holds 500 samples, as in OpenFWI. ``manifest.json`` records engine, versions, seed and survey. Calling again
    with the same arguments completes an interrupted run.

    Args:
        request: The data set.
        out: Folder of the data set.
        workers: Number of processes.
        on_progress: ``on_progress(done_samples, total_samples)`` is called after each chunk.
        scheduler: Dask scheduler (tcp://HOST:PORT) whose workers replace the ``workers`` local processes. They need no
            access to this machine's folders.

    Raises:
        DatasetError: The folder holds a data set with other arguments.
        ModellingError: The engine is not available; nothing has been written.
        ClusterError: The scheduler cannot be reached.
    """
    count, first = request.count, request.first
    if count < 1 or workers < 1 or first < 0:
        raise DatasetError(f"expected count >= 1, workers >= 1, first >= 0; got {count}, {workers}, {first}")
    check_seed(request.seed)
    names = distinct(request.families)
    # With a cluster, only its workers need the engine's packages.
    if scheduler:
        check_engine(request.engine)
    else:
        require_engine(request.engine)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, names, request)
    parts = out / ".parts"
    parts.mkdir(exist_ok=True)

    chunks = [
        chunk
        for name in names
        for chunk in _chunks(name, str(parts), request)
        if not _gather_path(out, name, chunk.file_index).exists()
    ]
    total = count * len(names)
    done = total - sum(chunk.count for chunk in chunks)
    on_progress(done, total)
    for finished in _run(chunks, workers, scheduler):
        done += finished.count
        on_progress(done, total)
        siblings = [c for c in chunks if (c.family, c.file_index) == (finished.family, finished.file_index)]
        if all(c.path("map").exists() for c in siblings):
            _assemble(out, siblings)
    shutil.rmtree(parts)
    n_files = -(-count // FILE_SAMPLES)
    return [_gather_path(out, name, index) for name in names for index in range(n_files)]


def distinct(families: Iterable[str]) -> list[str]:
    """Return canonical family names without repetition, in order. Raises ``UnknownFamilyError``."""
    return list(dict.fromkeys(check_family(family) for family in families))


def _claim(out: Path, names: list[str], request: DatasetRequest) -> None:
    """Write the manifest, or check that the existing one requests the same data."""
    wanted = {
        "format": "epic-dataset/1",
        "families": names,
        "count": request.count,
        "first": request.first,
        "seed": request.seed,
        "engine": request.engine,
        "acquisition": request.acquisition.to_dict(),
        "twins": request.twins,
    }
    path = out / "manifest.json"
    if path.exists():
        if not has_keys(path, {"families", "seed"}):
            raise DatasetError(
                f"{path}: expected the manifest of a data set, got another file; choose an empty folder"
            )
        found = {"twins": False, **json.loads(path.read_text())}
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            raise DatasetError(
                f"{out}: holds another data set ({', '.join(differing)} differ); choose an empty folder"
            )
        return
    used = ("numpy", "numba") if request.engine == "openfwi" else ("numpy",)
    versions: dict[str, str] = {}
    for name in used:
        # The workers of a cluster may have packages that this machine lacks.
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    wanted["versions"] = versions
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2))


def _chunks(family: str, parts: str, request: DatasetRequest) -> Iterator[_Chunk]:
    for start in range(0, request.count, FILE_SAMPLES):
        stop = min(start + FILE_SAMPLES, request.count)
        for begin in range(start, stop, CHUNK_SAMPLES):
            yield _Chunk(
                family=family,
                file_index=start // FILE_SAMPLES,
                first=request.first + begin,
                count=min(CHUNK_SAMPLES, stop - begin),
                parts=parts,
                request=request,
            )


def _gather_path(out: Path, family: str, file_index: int) -> Path:
    return out / family_folder(family) / family_file_names(family, file_index)[0]


def _run(chunks: list[_Chunk], workers: int, scheduler: str | None) -> Iterator[_Chunk]:
    # Both lists are complete before the first yield, because assembling a file deletes its chunks.
    there = [chunk for chunk in chunks if chunk.path("map").exists()]
    pending = [chunk for chunk in chunks if chunk not in there]
    yield from there
    if scheduler:
        for chunk, modelled in on_cluster(scheduler, _model, pending):
            yield _keep(chunk, *modelled)
        return
    if workers == 1:
        yield from map(_work, pending)
        return
    # Spawn, not fork: a fork would copy the threads of TensorFlow in an undefined state.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_one_thread) as pool:
        yield from pool.imap_unordered(_work, pending)


def _one_thread() -> None:
    """Limit OpenMP to one thread: two under contention were up to 75 times slower."""
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"


def _work(chunk: _Chunk) -> _Chunk:
    return _keep(chunk, *_model(chunk))


def _model(chunk: _Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Model the gathers and maps of a chunk."""
    from physics.modelling import model_gathers

    request = chunk.request
    maps = np.stack(
        [
            generate_map(chunk.family, request.seed, index, request.acquisition)
            for index in range(chunk.first, chunk.first + chunk.count)
        ]
    )
    survey = request.acquisition.with_twins() if request.twins else request.acquisition
    return model_gathers(maps, survey, engine=request.engine), maps


def _keep(chunk: _Chunk, gathers: np.ndarray, maps: np.ndarray) -> _Chunk:
    n_sources = chunk.request.acquisition.n_sources
    arrays = {"gather": gathers[:, :n_sources]}
    if chunk.request.twins:
        arrays["twins"] = gathers[:, n_sources:]
    # The map is written last; its presence marks the chunk as complete.
    for what, array in {**arrays, "map": maps}.items():
        path = chunk.path(what)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return chunk


def _assemble(out: Path, chunks: list[_Chunk]) -> None:
    """Join the chunks of one file; the gather file is written last and marks a complete pair."""
    chunks = sorted(chunks, key=lambda chunk: chunk.first)
    folder = out / family_folder(chunks[0].family)
    folder.mkdir(exist_ok=True)
    gather_name, map_name = family_file_names(chunks[0].family, chunks[0].file_index)
    count = sum(chunk.count for chunk in chunks)
    acquisition = chunks[0].request.acquisition
    arrays = {"map": (folder / map_name, acquisition.map_shape)}
    if chunks[0].request.twins:
        arrays["twins"] = (twins_path_of(folder / gather_name), acquisition.twins_shape)
    arrays["gather"] = (folder / gather_name, acquisition.gather_shape)
    for what, (path, shape) in arrays.items():
        with create_array(path, (count, *shape)) as array:
            row = 0
            for chunk in chunks:
                array[row : row + chunk.count] = np.load(chunk.path(what), mmap_mode="r")
                row += chunk.count
    for chunk in chunks:
        for what in arrays:
            chunk.path(what).unlink()
