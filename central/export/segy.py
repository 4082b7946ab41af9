"""Write maps as SEG-Y revision 1, with depth in place of time."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from central.export.errors import ExportError
from central.export.line import Line
from central.storage.map_store import StoredMap
from physics.acquisition import Acquisition

# Code 1 means metres (measurement system), length (coordinate units) and seismic data (trace type).
METRES, SEISMIC_DATA, MAX_INT16, MAX_INT32 = 1, 1, 0x7FFF, 0x7FFFFFFF
# Coordinates are in millimetres along the line, or in centimetres of a map projection, which fit the field.
DISTANCE_SCALAR, COORDINATE_SCALAR = -1000, -100
# The text is 40 cards of 80 columns, the last two and the first four columns of each given.
CARD_COLUMNS, FREE_CARDS = 76, 38


def _depth_unit(dx_m: float) -> tuple[str, int]:
    """Return the finest unit in which a cell fits SEG-Y's sample interval, and the cell size in that unit."""
    for unit, per_m in (("mm", 1000), ("cm", 100), ("m", 1)):
        if 0 < (interval := round(per_m * dx_m)) <= MAX_INT16:
            return unit, interval
    raise ExportError(f"export: SEG-Y holds cells of 1 mm to 32767 m, got {dx_m:g} m; take another format")


def coordinate_scalar(line: Line | None) -> int:
    """Return SEG-Y's scalar of coordinates, or of distances along a line whose place is unknown."""
    return DISTANCE_SCALAR if line is None else COORDINATE_SCALAR


def coordinates(distance_m: np.ndarray, line: Line | None) -> np.ndarray:
    """Return X and Y of points along the line, ``(n, 2)`` integers in the unit of ``coordinate_scalar``.

    Args:
        distance_m: Distances along the line, ``(n,)``.
        line: Its place; without one, X is the distance and Y is zero.

    Raises:
        ExportError: A coordinate does not fit SEG-Y's field.
    """
    per_m = -coordinate_scalar(line)
    at_m = np.stack([distance_m, 0 * distance_m], axis=1)
    if line is not None:
        at_m = line.coordinates(distance_m)
    found = np.round(at_m * per_m).astype(np.int64)
    if np.abs(found).max() > MAX_INT32:
        raise ExportError(
            f"export: SEG-Y holds coordinates of up to {MAX_INT32 / per_m:.0f} m; take another format"
        )
    return found


def write_segy(path: Path, stored: StoredMap, acquisition: Acquisition, line: Line | None) -> None:
    """Write velocity as inline 1 and uncertainty as inline 2, a trace a column.

    Depth from the top of each cell stands in place of time: the sample interval is in mm, of cells of 33 m and more in
    cm, of 328 m and more in m; the text header says which. CDP X and Y are coordinates where the line's place is known,
    else CDP X is the distance along it. Needs the extra ``geo``.
    """
    import segyio

    nz, nx = stored.velocity_mps.shape
    unit, interval = _depth_unit(acquisition.dx_m)
    spec = segyio.spec()
    spec.format, spec.sorting = 5, 2
    # Depth counts from the top of the first cell, since half a cell may not be a whole number; in milli-units, as
    # readers expect.
    spec.samples = np.arange(nz) * interval / 1000
    spec.ilines, spec.xlines = [1, 2], np.arange(1, nx + 1)
    cdp = coordinates(acquisition.distance_m(np.arange(nx)), line)
    with segyio.create(path, spec) as file:
        file.text[0] = _text_header(stored, f"{interval} {unit}", line)
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
                    segyio.TraceField.TraceIdentificationCode: SEISMIC_DATA,
                    segyio.TraceField.INLINE_3D: inline,
                    segyio.TraceField.CROSSLINE_3D: column + 1,
                    segyio.TraceField.CDP_X: int(cdp[column, 0]),
                    segyio.TraceField.CDP_Y: int(cdp[column, 1]),
                    segyio.TraceField.SourceGroupScalar: coordinate_scalar(line),
                    segyio.TraceField.CoordinateUnits: METRES,
                    segyio.TraceField.TRACE_SAMPLE_COUNT: nz,
                    segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval,
                }
                file.trace[trace] = np.ascontiguousarray(values[:, column], np.float32)


def _text_header(stored: StoredMap, cell: str, line: Line | None) -> str:
    import segyio

    devices = ", ".join(map(str, stored.provenance["devices"]))
    place = "CDP X is the column's centre, in m after its scalar"
    if line is not None:
        place = f"CDP X and Y are the column's centre, in m after their scalar{f', {line.crs}' if line.crs else ''}"
    lines = (
        "Seismic velocity from distributed full-waveform inversion (EPIC)",
        f"survey {stored.survey}, event {stored.event}, revision {stored.revision}",
        f"model {stored.provenance['model_hash']}",
        "inline 1: P-wave velocity, m/s; inline 2: its expected absolute error, m/s",
        f"samples are depth in place of time: sample 1 is the cell from 0 down, each cell {cell} high (that is the "
        f"sample interval); {place}",
        f"devices present: {devices}{' (partial)' if stored.partial else ''}",
    )
    cards = [card for line in lines for card in textwrap.wrap(line, CARD_COLUMNS)]
    if len(cards) > FREE_CARDS:
        cards[FREE_CARDS - 1 :] = ["(more devices than there is room for)"]
    numbered = dict(enumerate(cards, start=1))
    return segyio.tools.create_text_header({**numbered, 39: "SEG Y REV1", 40: "END TEXTUAL HEADER"})
