"""Maps for other programs: npy, NetCDF with CF names, Zarr, SEG-Y, PNG."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np

from central.errors import CentralError
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition

FORMATS = ("npy", "netcdf", "zarr", "segy", "png")
# SEG-Y revision 1: metres (of measurements) and length (of coordinates) have one number; so has the kind of a trace.
METRES, SEISMIC_DATA, MAX_INT16 = 1, 1, 0x7FFF
# Its text is 40 cards of 80 columns, the last two and the first four columns of each given.
CARD_COLUMNS, FREE_CARDS = 76, 38


class ExportError(CentralError, ValueError):
    """A map cannot be exported as asked."""


def export_map(stored: StoredMap, kind: str, out: Path) -> None:
    """Write ``stored`` to ``out``; the file appears when whole.

    npy: float32 ``(2, nz, nx)``, velocity then uncertainty, m/s. netcdf: the same as variables with
    axes in metres and the provenance as attributes (CF-1.11). zarr: that as a store in one zip file. segy: a
    trace a column, depth from the top of each cell in place of time (sample interval in mm, of cells of 33 m and more
    in cm, of 328 m and more in m; its text says which), velocity as inline 1 and uncertainty as inline 2. png: the
    picture. zarr and segy need the extra ``geo``.
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
        elif kind == "zarr":
            _write_zarr(_dataset(stored, acquisition), temporary)
        elif kind == "segy":
            _write_segy(stored, acquisition, temporary)
        else:
            from central.export.render import draw_map

            title = f"survey {stored.survey}, event {stored.event}"
            heard = stored.provenance["devices"]
            draw_map(temporary, stored.velocity_mps, stored.uncertainty_mps, acquisition, heard, title)
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_zarr(dataset, path: Path) -> None:
    # A zip cannot replace what xarray writes twice, so the store is made as a folder first.
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w") as zipped:
        dataset.to_zarr(folder, consolidated=False)
        for member in sorted(Path(folder).rglob("*")):
            if member.is_file():
                zipped.write(member, member.relative_to(folder))


def _depth_unit(dx_m: float) -> tuple[str, int]:
    """The finest unit in which a cell fits SEG-Y's sample interval, and what the cell is in it."""
    for unit, per_m in (("mm", 1000), ("cm", 100), ("m", 1)):
        if 0 < (interval := round(per_m * dx_m)) <= MAX_INT16:
            return unit, interval
    raise ExportError(f"export: SEG-Y holds cells of 1 mm to 32767 m, got {dx_m:g} m; take another format")


def _write_segy(stored: StoredMap, acquisition: Acquisition, path: Path) -> None:
    import segyio

    nz, nx = stored.velocity_mps.shape
    unit, interval = _depth_unit(acquisition.dx_m)
    spec = segyio.spec()
    spec.format, spec.sorting = 5, 2
    # From the top of the first cell, as a delay of half a cell need not be whole; in milli-units, as readers have it.
    spec.samples = np.arange(nz) * interval / 1000
    spec.ilines, spec.xlines = [1, 2], np.arange(1, nx + 1)
    with segyio.create(path, spec) as file:
        file.text[0] = _text_header(stored, f"{interval} {unit}")
        file.bin.update(
            {
                segyio.BinField.Interval: interval,
                segyio.BinField.IntervalOriginal: interval,
                segyio.BinField.MeasurementSystem: METRES,
                segyio.BinField.SEGYRevision: 1,
                segyio.BinField.SEGYRevisionMinor: 0,
                # All traces are of one length.
                segyio.BinField.TraceFlag: 1,
            }
        )
        for inline, values in enumerate((stored.velocity_mps, stored.uncertainty_mps), start=1):
            for column in range(nx):
                trace = (inline - 1) * nx + column
                file.header[trace] = {
                    segyio.TraceField.TRACE_SEQUENCE_LINE: trace + 1,
                    segyio.TraceField.TraceIdentifier: SEISMIC_DATA,
                    segyio.TraceField.INLINE_3D: inline,
                    segyio.TraceField.CROSSLINE_3D: column + 1,
                    segyio.TraceField.CDP_X: round(1000 * (column + 0.5) * acquisition.dx_m),
                    segyio.TraceField.SourceGroupScalar: -1000,
                    segyio.TraceField.CoordinateUnits: METRES,
                    segyio.TraceField.TRACE_SAMPLE_COUNT: nz,
                    segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
                }
                file.trace[trace] = np.ascontiguousarray(values[:, column], np.float32)


def _text_header(stored: StoredMap, cell: str) -> str:
    import segyio

    devices = ", ".join(map(str, stored.provenance["devices"]))
    lines = (
        "Seismic velocity from distributed full-waveform inversion (EPIC)",
        f"survey {stored.survey}, event {stored.event}, revision {stored.revision}",
        f"model {stored.provenance['model_hash']}",
        "inline 1: P-wave velocity, m/s; inline 2: its expected absolute error, m/s",
        f"samples are depth in place of time: sample 1 is the cell from 0 down, each cell {cell} high (that is the "
        "sample interval); CDP X is the column's centre, in m after its scalar",
        f"devices heard: {devices}{' (partial)' if stored.partial else ''}",
    )
    cards = [card for line in lines for card in textwrap.wrap(line, CARD_COLUMNS)]
    if len(cards) > FREE_CARDS:
        cards[FREE_CARDS - 1 :] = ["(more devices than there is room for)"]
    numbered = dict(enumerate(cards, start=1))
    return segyio.tools.create_text_header({**numbered, 39: "SEG Y REV1", 40: "END TEXTUAL HEADER"})


def _dataset(stored: StoredMap, acquisition: Acquisition):
    import xarray

    nz, nx = stored.velocity_mps.shape
    dims = ("depth", "distance")
    # A cell's value holds at its centre.
    depth_m = (np.arange(nz) + 0.5) * acquisition.dx_m
    distance_m = (np.arange(nx) + 0.5) * acquisition.dx_m
    dataset = xarray.Dataset(
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
    for axis in dims:
        # CF allows no missing values of coordinates; unasked, xarray names one.
        dataset[axis].encoding["_FillValue"] = None
    return dataset
