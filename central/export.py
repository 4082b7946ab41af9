"""Maps for other programs: npy, NetCDF with CF names, PNG."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np

from central.store import StoredMap
from physics.acquisition import Acquisition

FORMATS = ("npy", "netcdf", "png")


class ExportError(ValueError):
    """A map cannot be exported as asked."""


def export_map(stored: StoredMap, kind: str, out: Path) -> None:
    """Write ``stored`` to ``out``; the file appears when whole.

    npy: float32 ``(2, nz, nx)``, velocity then uncertainty, m/s. netcdf: the same as variables with
    axes in metres and the provenance as attributes (CF-1.11). png: the picture.
    Raises ``ExportError``.
    """
    if kind not in FORMATS:
        raise ExportError(f"export: expected one of {', '.join(FORMATS)}; got {kind!r}")
    acquisition = Acquisition.from_dict(stored.provenance["acquisition"])
    try:
        if not out.parent.is_dir():
            raise ExportError(f"{out}: no such folder {out.parent}; create it first")
        if out.is_dir():
            raise ExportError(f"{out}: is a folder; give the name of a file in it")
        _write(stored, kind, out, acquisition)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error})") from None


def _write(stored: StoredMap, kind: str, out: Path, acquisition: Acquisition) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        if kind == "npy":
            with temporary.open("wb") as file:
                np.save(file, np.stack([stored.velocity_mps, stored.uncertainty_mps]))
        elif kind == "netcdf":
            _dataset(stored, acquisition).to_netcdf(temporary, engine="h5netcdf")
        else:
            from central.render import draw_map

            title = f"survey {stored.survey}, event {stored.event}"
            heard = stored.provenance["devices"]
            draw_map(temporary, stored.velocity_mps, stored.uncertainty_mps, acquisition, heard, title)
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _dataset(stored: StoredMap, acquisition: Acquisition):
    import xarray

    nz, nx = stored.velocity_mps.shape
    dims = ("depth", "distance")
    # A cell's value holds at its centre.
    depth_m = (np.arange(nz) + 0.5) * acquisition.dx_m
    distance_m = (np.arange(nx) + 0.5) * acquisition.dx_m
    return xarray.Dataset(
        {
            "velocity": (
                dims,
                stored.velocity_mps,
                {"units": "m s-1", "long_name": "seismic P-wave velocity"},
            ),
            "uncertainty": (
                dims,
                stored.uncertainty_mps,
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
            "survey": stored.survey,
            "event": stored.event,
            "revision": stored.revision,
            "partial": int(stored.partial),
            "provenance": json.dumps(stored.provenance),
        },
    )
