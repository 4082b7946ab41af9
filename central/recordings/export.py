"""Export fetched gathers for other programs. A new format is a writer and a line in ``GATHER_FORMATS``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from central.export.errors import ExportError
from central.export.line import Line
from central.export.segy import coordinate_scalar, coordinates
from central.recordings.gathers import FetchedGather
from physics.files.atomic import atomic_write
from physics.files.json_keys import has_keys

CARD_COLUMNS, FREE_CARDS = 76, 38
METRES, SEISMIC_DATA, DEAD, MAX_INT16 = 1, 1, 2, 0x7FFF
# SEED band codes of short-period sensors, by the lowest sampling rate in Hz; P is a geophone, Z vertical.
BANDS = ((1000.0, "G"), (250.0, "D"), (80.0, "E"), (0.0, "S"))
MAX_SHOTS = 100


def _write_npy(path: Path, gather: FetchedGather, line: Line | None) -> None:
    """Write float32 ``(S, T, R)`` with NaN for missing devices."""
    with path.open("wb") as file:
        np.save(file, gather.samples)


def _write_segy(path: Path, gather: FetchedGather, line: Line | None) -> None:
    """Write SEG-Y revision 1: one trace for each shot and receiver; traces of missing devices are marked dead.

    X and Y are coordinates if the line's place is known. Else X is the distance along the line. Needs the extra
    ``geo``.
    """
    import segyio

    acquisition = gather.acquisition
    interval_us = round(acquisition.dt_s * 1e6)
    if not 0 < interval_us <= MAX_INT16 or acquisition.n_time > MAX_INT16:
        raise ExportError(
            f"export: SEG-Y holds intervals of 1 to {MAX_INT16} us and {MAX_INT16} samples, got {interval_us} us and "
            f"{acquisition.n_time}; take npy"
        )
    spec = segyio.spec()
    spec.format = 5
    spec.samples = np.arange(acquisition.n_time) * acquisition.dt_s * 1e3
    spec.tracecount = acquisition.n_sources * acquisition.n_receivers
    live = gather.live
    source_at, group_at = (
        coordinates(acquisition.distance_m(cells), line)
        for cells in (acquisition.source_cells, acquisition.receiver_cells)
    )
    with segyio.create(path, spec) as file:
        file.text[0] = _text_header(gather, line)
        file.bin.update(
            {
                segyio.BinField.Traces: acquisition.n_receivers,
                segyio.BinField.Interval: interval_us,
                segyio.BinField.IntervalOriginal: interval_us,
                segyio.BinField.MeasurementSystem: METRES,
                segyio.BinField.SEGYRevision: 1,
                segyio.BinField.SEGYRevisionMinor: 0,
                segyio.BinField.TraceFlag: 1,
            }
        )
        for shot, source_cell in enumerate(acquisition.source_cells):
            for receiver, cell in enumerate(acquisition.receiver_cells):
                trace = shot * acquisition.n_receivers + receiver
                source_m, group_m = acquisition.distance_m((source_cell, cell))
                file.header[trace] = {
                    segyio.TraceField.TRACE_SEQUENCE_LINE: trace + 1,
                    segyio.TraceField.FieldRecord: shot + 1,
                    segyio.TraceField.TraceNumber: receiver + 1,
                    segyio.TraceField.TraceIdentificationCode: SEISMIC_DATA if live[receiver] else DEAD,
                    segyio.TraceField.offset: round(group_m - source_m),
                    segyio.TraceField.SourceX: int(source_at[shot, 0]),
                    segyio.TraceField.SourceY: int(source_at[shot, 1]),
                    segyio.TraceField.GroupX: int(group_at[receiver, 0]),
                    segyio.TraceField.GroupY: int(group_at[receiver, 1]),
                    segyio.TraceField.SourceGroupScalar: coordinate_scalar(line),
                    segyio.TraceField.CoordinateUnits: METRES,
                    segyio.TraceField.TRACE_SAMPLE_COUNT: acquisition.n_time,
                    segyio.TraceField.TRACE_SAMPLE_INTERVAL: interval_us,
                }
                file.trace[trace] = np.nan_to_num(gather.samples[shot, :, receiver])


def _text_header(gather: FetchedGather, line: Line | None) -> str:
    import segyio

    missing = gather.provenance["missing_devices"]
    place = "X along the line in mm"
    if line is not None:
        place = f"X and Y in cm{f', {line.crs}' if line.crs else ''}"
    lines = [
        "Recording fetched from the devices of a distributed survey (EPIC)",
        gather.name,
        "field record is the shot, trace number the receiver",
        place,
        f"devices missing, their traces dead: {', '.join(map(str, missing)) or 'none'}",
        *(
            f"device {part['device']}: receivers {part['receivers'][0]} to {part['receivers'][1]}, misfit "
            f"{part['misfit_ppm']} ppm, SHA-256 {part['sha256'][:32]}"
            for part in gather.provenance["parts"]
        ),
    ]
    cards = [card for line in lines for card in textwrap.wrap(line, CARD_COLUMNS)]
    if len(cards) > FREE_CARDS:
        cards[FREE_CARDS - 1 :] = ["(more devices than there is room for)"]
    numbered = dict(enumerate(cards, start=1))
    return segyio.tools.create_text_header({**numbered, 39: "SEG Y REV1", 40: "END TEXTUAL HEADER"})


def _write_miniseed(path: Path, gather: FetchedGather, line: Line | None) -> None:
    """Write miniSEED 3: network XX, station R and the receiver, location the shot.

    Every shot begins at the sample time. Receivers of missing devices are left out. Needs the extra ``geo``.
    """
    from pymseed import DataEncoding, MS3TraceList

    acquisition = gather.acquisition
    if acquisition.n_sources > MAX_SHOTS:
        raise ExportError(
            f"export: miniSEED holds {MAX_SHOTS} shots here, got {acquisition.n_sources}; take segy or npy"
        )
    rate_hz = 1.0 / acquisition.dt_s
    band = next(code for lowest_hz, code in BANDS if rate_hz >= lowest_hz)
    start_ns = 1000 * max(part["sample_time_us"] for part in gather.provenance["parts"])
    traces = MS3TraceList()
    for shot in range(acquisition.n_sources):
        for receiver in np.flatnonzero(gather.live):
            traces.add_data(
                f"FDSN:XX_R{receiver:04d}_{shot:02d}_{band}_P_Z",
                np.ascontiguousarray(gather.samples[shot, :, receiver]),
                "f",
                rate_hz,
                starttime=start_ns,
            )
    traces.to_file(path, overwrite=True, encoding=DataEncoding.FLOAT32, format_version=3)


def _write_png(path: Path, gather: FetchedGather, line: Line | None) -> None:
    from central.recordings.picture import draw_gather

    draw_gather(path, gather.stored, gather.samples)


@dataclass(frozen=True)
class GatherFormat:
    suffixes: tuple[str, ...]
    write: Callable[[Path, FetchedGather, Line | None], None]


GATHER_FORMATS = {
    "npy": GatherFormat((".npy",), _write_npy),
    "segy": GatherFormat((".sgy", ".segy"), _write_segy),
    "miniseed": GatherFormat((".mseed", ".ms3"), _write_miniseed),
    "png": GatherFormat((".png",), _write_png),
}


def export_gather(gather: FetchedGather, out: Path, line: Line | None = None) -> str:
    """Write ``gather`` to ``out`` in the format of its suffix, and its provenance to ``FILE.json`` beside it.

    ``line`` is the place of the survey's line, None if it is unknown. Each file appears when it is complete.

    Returns:
        Name of the format.

    Raises:
        ExportError: The format is unknown, or the file cannot be written.
    """
    kind = next(
        (name for name, known in GATHER_FORMATS.items() if out.suffix.lower() in known.suffixes), None
    )
    if kind is None:
        known = ", ".join(f"{name} ({', '.join(form.suffixes)})" for name, form in GATHER_FORMATS.items())
        raise ExportError(f"{out}: expected the suffix of a format, {known}; got {out.suffix or 'none'!r}")
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise ExportError(f"{out}: expected the name of a file in a folder that exists")
        provenance_path = out.with_name(f"{out.name}.json")
        _check_own(provenance_path)
        provenance = gather.provenance | ({} if line is None else {"line": asdict(line)})
        with atomic_write(out) as temporary, atomic_write(provenance_path) as beside:
            GATHER_FORMATS[kind].write(temporary, gather, line)
            beside.write_text(json.dumps(provenance, indent=2) + "\n")
    except ImportError as error:
        raise ExportError(
            f"{out}: {kind} needs {error.name}; install it with: pip install -e '.[geo]'"
        ) from None
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror or error})") from None
    return kind


def _check_own(path: Path) -> None:
    """Raise ``ExportError`` if ``path`` is there and not the provenance of a gather."""
    if path.exists() and not has_keys(path, {"parts", "missing_devices"}):
        raise ExportError(
            f"{path}: is another file than the provenance of a gather, and would be overwritten; give another --out"
        )
