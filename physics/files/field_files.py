"""Import field recordings, in any format of ``physics.files.field``, as gathers on the grid of a survey.

Sources, receivers, sampling and length are the survey's. Every processing step is returned as a sentence, to be stored
with the data. SEG-Y and SU need no other package; the other formats need the extra ``geo``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from physics.acquisition import Acquisition
from physics.files.field.finish import FieldGather, check_gain, finish_gather, multiply
from physics.files.field.line import place_traces
from physics.files.field.registry import format_of
from physics.files.field.stations import cut_stations, read_receivers
from physics.files.field.traces import ChannelRecords, FieldFileError, ReadOptions, ShotTraces
from physics.gather_checks import MAX_SILENT_SHARE

__all__ = [
    "FieldFileError",
    "FieldGather",
    "ImportOptions",
    "finish_gather",
    "read_field_gather",
    "read_receivers",
]


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import. ``origin_m`` is the place of the survey's cell 0 on the line."""

    geometry: Path | None = None
    origin_m: float | None = None
    gain: float = 1.0
    component: str | None = None
    stack: bool = False
    allow_silent: bool = False
    interval_s: float | None = None


@dataclass(frozen=True)
class Imported(FieldGather):
    """Imported gather, and where known the position of the survey's cell 0 and the line's azimuth.

    The position is x and y in metres.
    """

    origin_m: tuple[float, float] | None = None
    azimuth_deg: float | None = None


def read_field_gather(
    paths: Sequence[Path], acquisition: Acquisition, options: ImportOptions = ImportOptions()
) -> Imported:
    """Read one event from one file or several. The format is detected by content.

    Traces of SEG-Y, SU and SEG-2 are placed by the positions in their headers. miniSEED needs ``options.geometry``, a
    TOML file with ``receivers`` (a SEED id for each receiver of the survey, in order) and ``shots`` (a time for each
    source). Unusable traces are silent and listed in the steps.

    Raises:
        FieldFileError: A file is damaged or ambiguous, or too much is missing.
    """
    check_gain(options.gain)
    if options.interval_s is not None and not 0 < options.interval_s < float("inf"):
        raise FieldFileError(f"--interval-ms: expected a positive number, got {1e3 * options.interval_s:g}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise FieldFileError(f"{paths[0]}: expected different files, got one of them twice")
    source = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    read = [format_of(path).read(path, ReadOptions(options.interval_s)) for path in paths]
    placed = [traces for traces in read if isinstance(traces, ShotTraces)]
    continuous = [records for records in read if isinstance(records, ChannelRecords)]
    if placed and continuous:
        raise FieldFileError(f"{source}: expected files with positions or continuous records, got both")
    if placed:
        if options.geometry is not None:
            raise FieldFileError(f"--geometry: {source} has positions in its headers; leave it out")
        found = place_traces(
            source,
            placed,
            acquisition,
            options.origin_m,
            options.component,
            options.stack,
            options.allow_silent,
        )
        gather, steps, origin_m, azimuth_deg = found.gather, found.steps, found.origin_m, found.azimuth_deg
    else:
        if options.geometry is None:
            raise FieldFileError(
                f"{source}: miniSEED says neither where receivers stand nor when shots were; give --geometry"
            )
        for name, given in (
            ("--component", options.component),
            ("--stack", options.stack or None),
            ("--origin-x-m", options.origin_m),
        ):
            if given is not None:
                raise FieldFileError(f"{name}: the geometry of miniSEED names each channel; leave it out")
        gather, steps = cut_stations(source, _together(continuous), acquisition, options.geometry)
        origin_m = azimuth_deg = None
    whole = multiply(source, gather, options.gain, steps)
    if whole.silent_share > MAX_SILENT_SHARE and not options.allow_silent:
        raise FieldFileError(
            f"{source}: {whole.steps[-1]}. Expected at most {MAX_SILENT_SHARE:.0%} silent, or the map is a guess; "
            "give a recording or a --survey that fits, or accept it with --allow-silent"
        )
    return Imported(whole.gather, whole.steps, origin_m, azimuth_deg)


def _together(files: Sequence[ChannelRecords]) -> ChannelRecords:
    channels: dict = {}
    for records in files:
        for name, segments in records.channels.items():
            channels.setdefault(name, []).extend(segments)
    return ChannelRecords(channels, tuple(step for records in files for step in records.steps))
