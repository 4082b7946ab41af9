"""Gathers from the formats of the field, SEG-Y and miniSEED, on the grid of a survey.

What arrives is a gather as an encoder takes it: sources and receivers in the survey's order, its sampling, its
length. Every step on the way is returned as a sentence, to be kept with the data. Needs the extra ``geo``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.errors import PhysicsError

SEGY_SUFFIXES = (".sgy", ".segy")
MINISEED_SUFFIXES = (".mseed", ".miniseed", ".ms")
# A trace belongs to the survey's nearest position, if that is within half a cell.
WITHIN_CELLS = 0.5
MAX_RATIO = 1000


class FieldFileError(PhysicsError, ValueError):
    """A field file is damaged, or does not hold what the survey asks for."""


@dataclass(frozen=True)
class FieldGather:
    """``gather (S, T, R)`` float32 and what was done to get it."""

    gather: np.ndarray
    steps: tuple[str, ...]


def read_field_gather(
    path: Path,
    acquisition: Acquisition,
    geometry: Path | None = None,
    origin_x_m: float | None = None,
    gain: float = 1.0,
) -> FieldGather:
    """One event of ``path``, SEG-Y or miniSEED by its suffix.

    SEG-Y: positions are in the trace headers (source and group x with their scalar); ``origin_x_m`` is
    where the survey's cell 0 lies, by default so that the first receiver stands in its cell. miniSEED:
    ``geometry`` is a TOML file with ``receivers`` (a SEED id for each receiver of the survey, in order) and
    ``shots`` (an ISO time for each source). Samples are multiplied by ``gain``. Receivers without a trace are
    silent. Raises ``FieldFileError``.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FieldFileError(f"{path}: not found; expected a SEG-Y or miniSEED file")
    if suffix in SEGY_SUFFIXES:
        traces, dt_s, steps = _read_segy(path, acquisition, origin_x_m)
    elif suffix in MINISEED_SUFFIXES:
        if geometry is None:
            raise FieldFileError(
                f"{path}: miniSEED says neither where receivers stand nor when shots were; give --geometry"
            )
        traces, dt_s, steps = _read_miniseed(path, acquisition, geometry)
    else:
        raise FieldFileError(
            f"{path}: expected {', '.join(SEGY_SUFFIXES + MINISEED_SUFFIXES)}, got {suffix or 'no suffix'!r}"
        )
    return finish_gather(str(path), traces, dt_s, acquisition, gain, steps)


def finish_gather(
    source: str, traces: np.ndarray, dt_s: float, acquisition: Acquisition, gain: float, steps: list[str]
) -> FieldGather:
    """``traces (S, T', R)`` cut at the shots and sampled at ``dt_s`` -> a gather on the survey's grid.

    ``source`` is what errors call it, ``steps`` what was done before. Raises ``FieldFileError``.
    """
    if not np.isfinite(traces).all():
        raise FieldFileError(f"{source}: holds NaN or infinite samples; mend the recording")
    sampled, resampling = _on_grid(source, traces, dt_s, acquisition)
    if gain != 1.0:
        resampling.append(f"multiplied by {gain:g}")
    silent = np.flatnonzero(~np.any(sampled, axis=(0, 1)))
    if len(silent) == traces.shape[2]:
        raise FieldFileError(f"{source}: every sample is zero")
    if len(silent):
        resampling.append(f"receivers {', '.join(map(str, silent))} silent")
    return FieldGather((sampled * np.float32(gain)).astype(np.float32), (*steps, *resampling))


def _read_segy(
    path: Path, acquisition: Acquisition, origin_x_m: float | None
) -> tuple[np.ndarray, float, list[str]]:
    import segyio

    try:
        with segyio.open(path, ignore_geometry=True) as file:
            source_x, group_x = (
                _scaled(file.attributes(field)[:], file.attributes(segyio.TraceField.SourceGroupScalar)[:])
                for field in (segyio.TraceField.SourceX, segyio.TraceField.GroupX)
            )
            delays_ms = file.attributes(segyio.TraceField.DelayRecordingTime)[:]
            dt_s = segyio.tools.dt(file, fallback_dt=0.0) * 1e-6
            data = file.trace.raw[:]
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise FieldFileError(f"{path}: not a whole SEG-Y file ({error}); copy it again") from None
    if dt_s <= 0:
        raise FieldFileError(f"{path}: has no sample interval in its headers")
    if np.any(delays_ms):
        raise FieldFileError(
            f"{path}: expected records that begin with the shot, got delays of {delays_ms.min()} to "
            f"{delays_ms.max()} ms; shift the traces first"
        )
    dx_m = acquisition.dx_m
    origin = origin_x_m
    if origin is None:
        origin = float(group_x.min()) - min(acquisition.receiver_cells) * dx_m
    sources = _nearest((source_x - origin) / dx_m, acquisition.source_cells)
    receivers = _nearest((group_x - origin) / dx_m, acquisition.receiver_cells)
    gather = np.zeros((acquisition.n_sources, data.shape[1], acquisition.n_receivers), np.float32)
    for trace, (source, receiver) in enumerate(zip(sources, receivers, strict=True)):
        if source >= 0 and receiver >= 0:
            gather[source, :, receiver] = data[trace]
    used = int(np.sum((sources >= 0) & (receivers >= 0)))
    if missing := [i for i in range(acquisition.n_sources) if i not in sources]:
        expected = ", ".join(f"{origin + acquisition.source_cells[i] * dx_m:g}" for i in missing)
        found = ", ".join(f"{x:g}" for x in sorted(set(source_x.tolist()))[:8])
        raise FieldFileError(
            f"{path}: no shot at x = {expected} m; its shots are at {found} m. Give --origin-x-m, the place of "
            "the survey's first cell"
        )
    return gather, dt_s, [f"{used} of {len(data)} traces of {path.name} by their x, cell 0 at {origin:g} m"]


def _scaled(values: np.ndarray, scalars: np.ndarray) -> np.ndarray:
    """Coordinates in metres: a positive scalar multiplies, a negative one divides, 0 is none (SEG-Y rev 1)."""
    scalars = np.where(scalars == 0, 1, scalars).astype(float)
    return values * np.where(scalars > 0, scalars, 1.0 / np.abs(scalars))


def _nearest(cells: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Index of the place that each of ``cells`` is at, -1 for none."""
    distance = np.abs(cells[:, None] - np.asarray(places, float)[None])
    nearest = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) <= WITHIN_CELLS, nearest, -1)


def _read_miniseed(
    path: Path, acquisition: Acquisition, geometry: Path
) -> tuple[np.ndarray, float, list[str]]:
    import obspy

    receivers, shots = _read_geometry(geometry, acquisition)
    try:
        stream = obspy.read(str(path), format="MSEED")
    except Exception as error:  # ObsPy's reader raises of every kind for damaged records
        raise FieldFileError(f"{path}: not a whole miniSEED file ({error}); copy it again") from None
    intervals = {trace.stats.delta for trace in stream}
    if len(intervals) != 1:
        raise FieldFileError(f"{path}: expected one sample interval, got {sorted(intervals)} s")
    (dt_s,) = intervals
    stream.merge()
    length = window_samples(acquisition, dt_s)
    gather = np.zeros((acquisition.n_sources, length, acquisition.n_receivers), np.float32)
    found = 0
    for receiver, name in enumerate(receivers):
        for trace in stream.select(id=name):
            found += 1
            for source, shot in enumerate(shots):
                first = (obspy.UTCDateTime(shot) - trace.stats.starttime) / dt_s
                gather[source, :, receiver] = cut_window(str(path), name, shot, trace.data, first, length)
    if not found:
        have = ", ".join(sorted({trace.id for trace in stream})[:8])
        raise FieldFileError(f"{path}: none of the geometry's receivers is there; it has {have}")
    return gather, dt_s, [f"{found} of {len(receivers)} receivers of {path.name}, cut at the shots' times"]


def window_samples(acquisition: Acquisition, dt_s: float) -> int:
    """Samples at ``dt_s`` of one record of the survey."""
    return int(np.ceil(acquisition.n_time * acquisition.dt_s / dt_s - 1e-9))


def cut_window(
    source: str, name: str, shot: str, samples: np.ndarray, first: float, length: int
) -> np.ndarray:
    """``length`` samples from the fractional index ``first`` on, between samples by a straight line.

    Raises ``FieldFileError`` where they are not all there.
    """
    at = first + np.arange(length)
    if at[0] < -1e-6 or at[-1] > len(samples) - 1 + 1e-6:
        raise FieldFileError(
            f"{source}: {name} has no {length} samples from {shot} on; its record is too short or has another clock"
        )
    low, high = int(np.floor(at[0] + 1e-6)), int(np.ceil(at[-1] - 1e-6)) + 1
    used = samples[low:high]
    if np.ma.is_masked(used):
        raise FieldFileError(
            f"{source}: {name} has a gap after {shot}; take it out of the geometry, or fill it"
        )
    return np.interp(at, np.arange(low, high), np.asarray(used, float))


def _read_geometry(path: Path, acquisition: Acquisition) -> tuple[list[str], list[str]]:
    content = _read_toml(path)
    return (
        _list_of(path, content, "receivers", acquisition.n_receivers),
        _list_of(path, content, "shots", acquisition.n_sources),
    )


def read_receivers(path: Path, acquisition: Acquisition) -> list[str]:
    """SEED ids of the survey's receivers, in order, of a geometry file. Raises ``FieldFileError``."""
    return _list_of(path, _read_toml(path), "receivers", acquisition.n_receivers)


def _read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FieldFileError(f"{path}: cannot be read ({error}); expected TOML") from None


def _list_of(path: Path, content: dict, key: str, count: int) -> list[str]:
    values = content.get(key)
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values)}" if isinstance(values, list) else "none"
        raise FieldFileError(f"{path}: expected a list of {count} {key}, got {got}")
    return [value if isinstance(value, str) else str(value) for value in values]


def _on_grid(
    source: str, traces: np.ndarray, dt_s: float, acquisition: Acquisition
) -> tuple[np.ndarray, list[str]]:
    """``(S, T', R)`` sampled at ``dt_s`` -> the survey's sampling and length, without aliases."""
    steps = []
    if not np.isclose(dt_s, acquisition.dt_s, rtol=1e-6):
        from scipy.signal import resample_poly

        ratio = Fraction(dt_s / acquisition.dt_s).limit_denominator(MAX_RATIO)
        traces = resample_poly(traces, ratio.numerator, ratio.denominator, axis=1)
        steps.append(f"resampled from {1000 * dt_s:g} to {1000 * acquisition.dt_s:g} ms (polyphase)")
    have, need = traces.shape[1], acquisition.n_time
    if have < need:
        raise FieldFileError(
            f"{source}: expected {need * acquisition.dt_s:g} s of record, got {have * acquisition.dt_s:g} s"
        )
    if have > need:
        steps.append(f"cut to {need * acquisition.dt_s:g} s")
    return traces[:, :need], steps
