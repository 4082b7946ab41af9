"""The benchmark's forward model on an NVIDIA GPU of compute capability 9.0 or later, through CuPy.

The scheme equals ``physics.engines.openfwi`` except for rounding. A shot stays in the shared memory of a cluster of
blocks (``openfwi.cu``). A GPU therefore models as many samples in a second as a processor core in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from physics.acquisition import Acquisition
from physics.engines.scheme import MARGIN_CELLS, PAD_CELLS, sponge_per_mps
from physics.errors import ModellingError
from physics.wavelet import ricker

KERNEL = Path(__file__).with_name("openfwi.cu")
WARP = 32
MOST_THREADS = 1024
# Shared memory per block and cluster sizes that every GPU with clusters supports.
SHARED_BYTES = 227 * 1024
CLUSTERS = (1, 2, 4, 8)
MAPS_AT_ONCE = 256


@dataclass(frozen=True)
class Layout:
    """Distribution of a padded grid over the threads of a cluster."""

    n_depth: int
    n_width: int
    cluster: int
    groups: int
    rows: int
    columns: int

    @property
    def threads(self) -> int:
        return self.columns * self.groups

    @property
    def shared_floats(self) -> int:
        band = self.groups * self.rows
        field = (band + 4) * (self.n_width + 2 * PAD_CELLS + 4)
        return 2 * field + self.n_depth * self.n_width + band

    def definitions(self) -> list[str]:
        values = {
            "NZ": self.n_depth,
            "NX": self.n_width,
            "PAD": PAD_CELLS,
            "CLUSTER": self.cluster,
            "GROUPS": self.groups,
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "THREADS": self.threads,
            "SHARED_FLOATS": self.shared_floats,
        }
        return [f"-D{name}={value}" for name, value in values.items()]


def lay_out(acquisition: Acquisition) -> Layout:
    """Return the smallest cluster that holds a shot of this survey. Raises ``ModellingError`` if none does."""
    columns = ceil((acquisition.n_width + 2 * PAD_CELLS) / WARP) * WARP
    deep = acquisition.n_depth + 2 * PAD_CELLS
    groups = max(1, MOST_THREADS // columns)
    for cluster in CLUSTERS:
        rows = ceil(deep / (cluster * groups))
        layout = Layout(acquisition.n_depth, acquisition.n_width, cluster, groups, rows, columns)
        # The last thread of a column needs cells of its own, and two of them for its neighbour's stencil.
        last = deep - (cluster * groups - 1) * rows
        if columns <= MOST_THREADS and 4 * layout.shared_floats <= SHARED_BYTES and last >= 2:
            return layout
    raise ModellingError(
        f"modelling: engine cuda holds a shot in the shared memory of {CLUSTERS[-1]} blocks; a map of "
        f"{acquisition.n_depth} x {acquisition.n_width} cells is too large, take engine openfwi"
    )


def arguments(velocity_mps: np.ndarray, acquisition: Acquisition, average: int) -> dict[str, Any]:
    """Return the kernel's arguments for maps ``(n, nz, nx)`` by name, in the kernel's order, without the record."""
    a = acquisition
    receivers = np.array(a.receiver_cells)
    if np.any(np.diff(receivers) != 1):
        raise ModellingError("modelling: engine cuda expected receivers on neighbouring cells; take openfwi")
    return {
        "velocity": np.ascontiguousarray(velocity_mps, np.float32),
        "sponge": (velocity_mps.min(axis=(1, 2)) * sponge_per_mps(a.dx_m)).astype(np.float32),
        "fastest": (velocity_mps.max(axis=(1, 2)) * a.dt_s / a.dx_m).astype(np.float32),
        "wavelet": ricker(a),
        "source_columns": (np.array(a.source_cells) + PAD_CELLS).astype(np.int32),
        "record": None,
        "n_sources": np.int32(a.n_sources),
        "n_time": np.int32(a.n_time),
        "average": np.int32(average),
        "source_row": np.int32(a.source_row + PAD_CELLS),
        "receiver_row": np.int32(a.receiver_row + PAD_CELLS),
        "receiver_first": np.int32(receivers[0] + PAD_CELLS),
        "n_receivers": np.int32(a.n_receivers),
        "dt_s": np.float32(a.dt_s),
        "dt_over_dx": np.float32(a.dt_s / a.dx_m),
        "margin": np.int32(MARGIN_CELLS),
    }


def load_cupy() -> Any:
    """Return CuPy after checking for a GPU. Raises ``ModellingError``."""
    try:
        import cupy
    except ImportError as error:
        raise ModellingError(
            f"modelling: engine cuda needs {error.name}; on a machine with an NVIDIA GPU, pip install -e '.[gpu]'"
        ) from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ModellingError(
            f"modelling: engine cuda found no GPU that it can use ({error}); look at nvidia-smi, or take engine openfwi"
        ) from None
    return cupy


@lru_cache(maxsize=4)
def _kernel(layout: Layout) -> Any:
    cupy = load_cupy()
    capability = cupy.cuda.Device().compute_capability
    if int(capability) < 90:
        raise ModellingError(
            f"modelling: engine cuda needs a GPU of compute capability 9.0 or later, got {capability}; "
            "take engine openfwi"
        )
    module = cupy.RawModule(code=KERNEL.read_text(), options=tuple(layout.definitions()))
    kernel = module.get_function("record_shots")
    kernel.max_dynamic_shared_size_bytes = 4 * layout.shared_floats
    return kernel


def record(velocity_mps: np.ndarray, acquisition: Acquisition, average: int = 1) -> Any:
    """Model gathers of maps ``(n, nz, nx)`` in m/s; return before the GPU has finished.

    Returns:
        CuPy array ``(n, T / average, R, S)`` float32; each sample is the mean of ``average`` time steps.

    Raises:
        ModellingError: There is no suitable GPU, or the survey does not fit.
    """
    cupy = load_cupy()
    layout = lay_out(acquisition)
    kernel = _kernel(layout)
    values = arguments(velocity_mps, acquisition, average)
    n, a = len(velocity_mps), acquisition
    values["record"] = cupy.empty((n, a.n_time // average, a.n_receivers, a.n_sources), cupy.float32)
    on_gpu = [cupy.asarray(v) if isinstance(v, np.ndarray) else v for v in values.values()]
    kernel(
        (n * a.n_sources * layout.cluster,),
        (layout.threads,),
        tuple(on_gpu),
        shared_mem=4 * layout.shared_floats,
    )
    return values["record"]


def model(velocity_mps: np.ndarray, acquisition: Acquisition) -> np.ndarray:
    """Model gathers ``(n, S, T, R)`` float32 of maps ``(n, nz, nx)`` in m/s. Raises ``ModellingError``."""
    cupy = load_cupy()
    parts = [
        cupy.asnumpy(record(velocity_mps[i : i + MAPS_AT_ONCE], acquisition))
        for i in range(0, len(velocity_mps), MAPS_AT_ONCE)
    ]
    return np.ascontiguousarray(np.concatenate(parts).transpose(0, 3, 1, 2))
