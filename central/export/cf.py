"""Maps as NetCDF and Zarr with the names and units of CF-1.11."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from central.export.line import Line
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition

AXES = (
    {"standard_name": "projection_x_coordinate", "long_name": "easting of the column's centre"},
    {"standard_name": "projection_y_coordinate", "long_name": "northing of the column's centre"},
)


def write_netcdf(path: Path, stored: StoredMap, acquisition: Acquisition, line: Line | None) -> None:
    """Write velocity and uncertainty as variables with axes in metres, the provenance as attributes."""
    dataset(stored, acquisition, line).to_netcdf(path, engine="h5netcdf")


def write_zarr(path: Path, stored: StoredMap, acquisition: Acquisition, line: Line | None) -> None:
    """Write the same as a Zarr store, a folder that ``xarray.open_zarr`` opens. Needs the extra ``geo``."""
    with warnings.catch_warnings():
        # Zarr version 3 has no consolidated metadata yet; writing none avoids a warning in every reader.
        warnings.simplefilter("ignore")
        dataset(stored, acquisition, line).to_zarr(path, mode="w", consolidated=True)


def is_zarr(path: Path) -> bool:
    """Return True for a folder that holds a Zarr store, or nothing."""
    return path.is_dir() and ((path / "zarr.json").is_file() or not any(path.iterdir()))


def replace_folder(new: Path, old: Path) -> None:
    """Replace the folder ``old`` with ``new``, whatever is there."""
    aside = old.with_name(f".{old.name}.old")
    if old.exists():
        os.replace(old, aside)
    try:
        os.replace(new, old)
    except OSError:
        if aside.exists():
            os.replace(aside, old)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)
    elif aside.exists():
        aside.unlink()


def _history(stored: StoredMap) -> str:
    """Return when the map was decoded and exported, one line each (CF's ``history``)."""
    version = metadata.version("epic-fwi")
    lines = []
    if decoded_us := stored.provenance.get("decoded_us"):
        lines.append(f"{_stamp(decoded_us / 1e6)} epic-fwi {version}: decoded from the latents of devices")
    lines.append(
        f"{_stamp(datetime.now(UTC).timestamp())} epic-fwi {version}: epic central export {stored.event}"
    )
    return "\n".join(lines)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dataset(stored: StoredMap, acquisition: Acquisition, line: Line | None) -> Any:
    """Build the ``xarray.Dataset`` of a stored map, with its provenance (CF-1.11)."""
    built = map_dataset(stored.velocity_mps, stored.uncertainty_mps, acquisition)
    built.attrs |= {
        "survey": stored.survey,
        "event": stored.event,
        "revision": stored.revision,
        "partial": int(stored.partial),
        "provenance": json.dumps(stored.provenance),
        "history": _history(stored),
    }
    distance_m = built["distance"].values
    if line is not None:
        for name, values, said in zip("xy", line.coordinates(distance_m).T, AXES, strict=True):
            built = built.assign_coords({name: ("distance", values, {"units": "m", **said})})
        built.attrs |= {
            "line_origin_x_m": line.origin_m[0],
            "line_origin_y_m": line.origin_m[1],
            "line_azimuth_deg": line.azimuth_deg,
        }
        if line.crs:
            built.attrs["line_crs"] = line.crs
    for axis in built.coords:
        # CF allows no missing values in coordinates; xarray adds a fill value by default.
        built[axis].encoding["_FillValue"] = None
    return built


def map_dataset(velocity_mps: np.ndarray, uncertainty_mps: np.ndarray, acquisition: Acquisition) -> Any:
    """Build the ``xarray.Dataset`` of maps ``(nz, nx)`` in m/s by depth and distance (CF-1.11)."""
    import xarray

    nz, nx = velocity_mps.shape
    dims = ("depth", "distance")
    # Coordinates are cell centres.
    depth_m = (np.arange(nz) + 0.5) * acquisition.dx_m
    distance_m = acquisition.distance_m(np.arange(nx))
    built = xarray.Dataset(
        {
            "velocity": (dims, velocity_mps, {"units": "m s-1", "long_name": "seismic P-wave velocity"}),
            "uncertainty": (
                dims,
                uncertainty_mps,
                {"units": "m s-1", "long_name": "expected absolute error of the velocity (Laplace scale)"},
            ),
        },
        coords={
            "depth": (
                "depth",
                depth_m,
                {"units": "m", "positive": "down", "axis": "Z", "standard_name": "depth"},
            ),
            "distance": (
                "distance",
                distance_m,
                {"units": "m", "axis": "X", "long_name": "distance along the line"},
            ),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Seismic velocity from distributed full-waveform inversion",
            "source": "EPIC (arXiv 2603.09032)",
        },
    )
    for axis in built.coords:
        # CF allows no missing values in coordinates; xarray adds a fill value by default.
        built[axis].encoding["_FillValue"] = None
    return built
