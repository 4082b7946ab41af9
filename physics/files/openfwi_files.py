"""Read and write OpenFWI's files: names, shapes, pairing, memory-mapped reading, atomic writing.

A data set is a folder per family (``FlatVel_A``). A file holds up to 500 samples.

Vel and Style: ``data{i}.npy`` with ``model{i}.npy`` (from 1), in one folder or, as downloaded, in ``data/`` and
``model/``. Fault: ``seis{a}_1_{k}.npy`` with ``vel{a}_1_{k}.npy`` (k from 0), a = 2, 3, 4 for the A and 6, 7, 8 for the
B families; files written here use the first of the three.

Gathers are float32 ``(n, sources, time, receivers)``, maps ``(n, 1, depth, width)`` in m/s.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.errors import PhysicsError
from physics.families import FAMILIES, REGISTRY, check_family
from physics.files.atomic import atomic_write

_GATHER_NAMES = (
    (re.compile(r"^data(\d+)\.npy$"), "model{}.npy"),
    (re.compile(r"^seis(\d+_1_\d+)\.npy$"), "vel{}.npy"),
)

NPY_MAGIC = b"\x93NUMPY"
# Sub-folders of a family in a downloaded data set.
_GATHERS_FOLDER, _MAPS_FOLDER = "data", "model"


class OpenFWIFileError(PhysicsError, ValueError):
    """A file is missing or damaged, or does not have the benchmark's layout."""


def family_folder(family: str) -> str:
    """Return the benchmark's folder name: ``flatvel_a`` -> ``FlatVel_A``."""
    kind, variant = check_family(family).rsplit("_", 1)
    for suffix in ("vel", "fault"):
        if kind.endswith(suffix):
            kind = kind.removesuffix(suffix).capitalize() + suffix
    return (
        f"{kind[0].upper()}{kind[1:]}".replace("vel", "Vel").replace("fault", "Fault") + f"_{variant.upper()}"
    )


def family_file_names(family: str, index: int) -> tuple[str, str]:
    """Return the names of the ``index``-th (from 0) gather and map file of a family."""
    map_files = REGISTRY[check_family(family)].map_files
    # Fault files are numbered from 0, the others from 1.
    number = index if map_files.startswith("vel") else index + 1
    gather_files = map_files.replace("vel", "seis").replace("model", "data")
    return gather_files.format(number), map_files.format(number)


def map_path_of(gather_path: Path) -> Path | None:
    """Return the map file of a gather file by the benchmark's names; None for other names.

    It is beside the gather file. For ``data/data1.npy`` it may also be ``model/model1.npy``.
    """
    for pattern, map_name in _GATHER_NAMES:
        if match := pattern.match(gather_path.name):
            beside = gather_path.with_name(map_name.format(match.group(1)))
            if gather_path.parent.name != _GATHERS_FOLDER or beside.exists():
                return beside
            apart = gather_path.parent.with_name(_MAPS_FOLDER) / beside.name
            return apart if apart.exists() else beside
    return None


def family_of(gather_path: Path) -> str:
    """Return the family that a gather file's folder names; ``unknown`` for other names."""
    folder = gather_path.parent
    if folder.name == _GATHERS_FOLDER:
        folder = folder.parent
    name = folder.name.lower()
    return name if name in FAMILIES else "unknown"


def twins_path_of(gather_path: Path) -> Path:
    """Return the file of the extra shots for exact mirroring; it is not part of the benchmark's layout."""
    return gather_path.with_name(f"{gather_path.stem}.twins.npy")


@dataclass(frozen=True)
class OpenFWIPair:
    """A gather file with its map file (None if there is none)."""

    gather_path: Path
    map_path: Path | None
    family: str
    acquisition: Acquisition

    def gathers(self) -> np.ndarray:
        """Gathers ``(n, S, T, R)``, memory-mapped."""
        return open_gathers(self.gather_path, self.acquisition)

    def twins(self) -> np.ndarray | None:
        """Shots from the survey's ``twin_cells``, ``(n, n_twins, T, R)``, memory-mapped; None if there are none."""
        path = twins_path_of(self.gather_path)
        if not path.exists():
            return None
        twins = _open(path, self.acquisition.twins_shape, "twin shots")
        if len(twins) != len(self.gathers()):
            raise OpenFWIFileError(
                f"{path}: expected {len(self.gathers())} samples as in {self.gather_path.name}, got {len(twins)}; "
                "remove it to train without mirroring"
            )
        return twins

    def maps(self) -> np.ndarray:
        """``(n, 1, nz, nx)`` m/s, memory-mapped. Raises ``OpenFWIFileError``."""
        if self.map_path is None:
            raise OpenFWIFileError(f"{self.gather_path}: has no map file beside it")
        maps = _open(self.map_path, self.acquisition.map_shape, "maps")
        n = len(self.gathers())
        if len(maps) != n:
            raise OpenFWIFileError(
                f"{self.map_path}: expected {n} maps, one for each gather of {self.gather_path.name}, "
                f"got {len(maps)}; take the files of one download together"
            )
        return maps

    def __len__(self) -> int:
        return len(self.gathers())


def _open(path: Path, sample_shape: tuple[int, ...], what: str) -> np.ndarray:
    if not path.exists():
        raise OpenFWIFileError(f"{path}: not found; expected an OpenFWI .npy file of {what}")
    try:
        with path.open("rb") as file:
            if not (NPY_MAGIC.startswith(start := file.read(len(NPY_MAGIC))) or start.startswith(b"PK")):
                raise OpenFWIFileError(
                    f"{path}: expected a .npy file, got other content; write it with numpy.save"
                )
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an .npz archive under another name")
    except OpenFWIFileError:
        raise
    # numpy's header parser raises many exception types: TokenError, OverflowError and more.
    except Exception as error:
        raise OpenFWIFileError(
            f"{path}: not a whole .npy file ({error}); it may be truncated, copy or download it again"
        ) from None
    if array.ndim == len(sample_shape):
        array = array[None]
    if array.shape[1:] != sample_shape or array.dtype.kind != "f":
        raise OpenFWIFileError(
            f"{path}: expected floating {what} of shape (n, {', '.join(map(str, sample_shape))}), "
            f"got {array.dtype} {array.shape}"
        )
    return array


def open_gathers(path: Path, acquisition: Acquisition) -> np.ndarray:
    """Open the gathers of a file, memory-mapped ``(n, S, T, R)``; a single gather ``(S, T, R)`` counts as n = 1.

    Raises:
        OpenFWIFileError: The file is missing or truncated, or has another shape or type.
    """
    return _open(path, acquisition.gather_shape, "gathers")


def open_pair(gather_path: Path, acquisition: Acquisition) -> OpenFWIPair:
    """Open a gather file and, if there is one, its map file (``map_path_of``); both are checked."""
    open_gathers(gather_path, acquisition)
    map_path = map_path_of(gather_path)
    if map_path is not None and not map_path.exists():
        map_path = None
    pair = OpenFWIPair(gather_path, map_path, family_of(gather_path), acquisition)
    if map_path is not None:
        pair.maps()
    return pair


def find_gather_files(folder: Path) -> list[Path]:
    """Return all gather files in ``folder`` and its sub-folders, recognised and sorted by name."""
    return [
        path
        for path in sorted(folder.rglob("*.npy"), key=_natural)
        if map_path_of(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def find_pairs(folder: Path, acquisition: Acquisition) -> list[OpenFWIPair]:
    """Return the gather files of ``find_gather_files`` with their maps.

    Raises:
        OpenFWIFileError: The folder is missing, or a gather file has no map file.
    """
    if not folder.is_dir():
        raise OpenFWIFileError(f"{folder}: no such folder; expected one with OpenFWI files")
    pairs = []
    for path in find_gather_files(folder):
        pair = open_pair(path, acquisition)
        if pair.map_path is None:
            raise OpenFWIFileError(
                f"{map_path_of(path)}: not found; expected the maps of {path.name} beside it, or of data/{path.name} "
                f"in {_MAPS_FOLDER}/"
            )
        pairs.append(pair)
    return pairs


def _natural(path: Path) -> tuple:
    """Sort key that puts ``data10`` after ``data9``."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", path.name))
    return (str(path.parent), numbers)


@contextmanager
def create_array(path: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Create a memory-mapped float32 .npy file to be filled in place; it appears under its name when complete.

    Raises:
        OpenFWIFileError: The disk is full.
    """
    with atomic_write(path) as temporary:
        array = _make_room(temporary, path, shape)
        yield array
        array.flush()


def _make_room(temporary: Path, path: Path, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        _reserve(temporary)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size_mb = 4e-6 * float(np.prod(shape))
        raise OpenFWIFileError(
            f"{path}: expected {size_mb:.1f} MB of room on its disk, which has less; make room, or choose another"
        ) from None
    return array


def _reserve(path: Path) -> None:
    """Allocate a sparse file's blocks. Otherwise a full disk causes SIGBUS on a write to mapped memory."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            # Some network file systems do not support this; continue without.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
