"""Assign traces with positions to the sources and receivers of a survey's line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from physics.acquisition import Acquisition
from physics.files.field.grid import record_on_grid, same_interval
from physics.files.field.trace_headers import COMPONENTS, KINDS, UNNAMED
from physics.files.field.traces import FieldFileError, ShotTraces, counted, metres, named

# Greatest distance, in cells, from a trace to the survey position that it is assigned to.
WITHIN_CELLS = 0.5
# Positions closer than this, in cells, count as one.
SAME_CELLS = 1e-3
# Greatest distance from a straight line, as a share of its length; beyond it the survey is an area, not a line.
MAX_OFF_LINE = 0.2
EARTH_RADIUS_M = 6_378_137.0
EARTH_FLATTENING = 1 / 298.257223563


@dataclass(frozen=True)
class Line:
    """A straight survey line.

    ``first`` is the position of the first receiver in metres. ``direction`` is a unit vector of x and y. A place on the
    line is a distance in metres. Along an axis it is that coordinate; otherwise it is counted from the larger
    coordinate of ``first``.
    """

    first: np.ndarray
    direction: np.ndarray
    zero_m: float

    def along(self, places: np.ndarray) -> np.ndarray:
        """Project positions ``(n, 2)`` on the line: ``(n,)`` metres."""
        return (places - self.first) @ self.direction + self.zero_m

    def off(self, places: np.ndarray) -> np.ndarray:
        """Return the distances ``(n,)`` from the line in metres."""
        return np.abs((places - self.first) @ np.array([-self.direction[1], self.direction[0]]))

    def position(self, along_m: float) -> tuple[float, float]:
        """Return x and y in metres of a place on the line."""
        x, y = self.first + (along_m - self.zero_m) * self.direction
        return float(x), float(y)

    @property
    def azimuth_deg(self) -> float:
        """Return the direction of the line in degrees, clockwise from y (north)."""
        return float(np.degrees(np.arctan2(self.direction[0], self.direction[1])) % 360)


@dataclass(frozen=True)
class Placed:
    """A ``gather (S, T, R)`` on the survey's grid, the steps so far, and the position of the survey's cell 0."""

    gather: np.ndarray
    steps: list[str]
    origin_m: tuple[float, float] | None
    azimuth_deg: float | None


def place_traces(
    source: str,
    files: Sequence[ShotTraces],
    acquisition: Acquisition,
    origin_m: float | None = None,
    component: str | None = None,
    stack: bool = False,
    allow_silent: bool = False,
) -> Placed:
    """Assign traces to the survey's sources and receivers by their positions.

    Args:
        source: Name of the recording, for errors and steps.
        files: Traces of one or more files.
        acquisition: The survey.
        origin_m: Place of the survey's cell 0 on the line; None puts the first receiver into its cell.
        component: Key of ``COMPONENTS``; required if the files have several.
        stack: Average repeated shots.
        allow_silent: Accept sources without a trace.

    Raises:
        FieldFileError: No trace matches the survey, or the match is ambiguous.
    """
    traces = _All(files)
    steps = list(traces.steps)
    kept, told = _choose_kinds(source, traces.kind, component)
    steps += told
    source_m, receiver_m, degrees = _in_metres(source, traces)
    line = fit_line(source, source_m[kept], receiver_m[kept], acquisition.dx_m, degrees)
    source_at, receiver_at = line.along(source_m), line.along(receiver_m)
    origin = origin_m
    if origin is None:
        origin = float(receiver_at[kept].min()) - min(acquisition.receiver_cells) * acquisition.dx_m
    sources = _assign((source_at - origin) / acquisition.dx_m, acquisition.source_cells)
    receivers = _assign((receiver_at - origin) / acquisition.dx_m, acquisition.receiver_cells)
    there = [int(i) for i in kept if sources.index[i] >= 0 and receivers.index[i] >= 0]
    found = {int(index) for index in sources.index[kept]}
    _check_sources(source, acquisition, origin, source_at[kept], found, allow_silent)
    if not there:
        raise FieldFileError(
            f"{source}: no trace at a receiver of the survey; receivers are at "
            f"{metres(receiver_at[kept].min())} to {metres(receiver_at[kept].max())} m. Give --origin-x-m, the place "
            "of the survey's first cell"
        )
    chosen = _choose_nearest(there, sources, receivers)
    steps += _check_repeated(source, chosen, traces, stack)
    gather, bad, resampled = _read(source, chosen, traces, acquisition)
    used = sum(map(len, chosen.values()))
    off_m = max(line.off(source_m[there]).max(), line.off(receiver_m[there]).max())
    head = [f"{used} of {len(traces)} traces of {source} by their positions, {_origin_text(line, origin)}"]
    if elsewhere := len(kept) - len(there):
        head.append(
            f"{counted(elsewhere, 'trace')} left out: elsewhere than the survey's sources and receivers"
        )
    if farther := len(there) - used:
        head.append(
            f"{counted(farther, 'trace')} left out: between the survey's positions, where others are nearer"
        )
    if off_m > WITHIN_CELLS * acquisition.dx_m:
        head.append(f"positions are up to {off_m:.1f} m off the line")
    return Placed(
        gather,
        [*head, *steps, *resampled, *bad],
        None if degrees else line.position(origin),
        None if degrees else line.azimuth_deg,
    )


class _All:
    """Traces of all files, one after another."""

    def __init__(self, files: Sequence[ShotTraces]) -> None:
        self._files = files
        self._starts = np.cumsum([0, *(len(file) for file in files)])
        self.steps = list(dict.fromkeys(step for file in files for step in file.steps))
        self.kind, self.source, self.receiver, self.interval_s, self.start_s = (
            np.concatenate([getattr(file, name) for file in files])
            for name in ("kind", "source", "receiver", "interval_s", "start_s")
        )
        self.degrees = {file.degrees for file in files}

    def __len__(self) -> int:
        return len(self.kind)

    def _at(self, index: int) -> tuple[ShotTraces, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._files[number], index - int(self._starts[number])

    def name(self, index: int) -> str:
        file, own = self._at(index)
        return file.names[own]

    def read(self, index: int) -> np.ndarray:
        file, own = self._at(index)
        return file.read(own)


def _choose_kinds(source: str, kinds: np.ndarray, component: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the indices of traces of ground motion, and a description of those excluded."""
    by_code = {code: name for name, codes in COMPONENTS.items() for code in codes}
    usable = np.isin(kinds, (*UNNAMED, *by_code))
    left = Counter(KINDS.get(int(kind), f"identification {kind}") for kind in kinds[~usable])
    told = [f"{counted(count, 'trace')} left out: {name}" for name, count in left.items()]
    if not usable.any():
        raise FieldFileError(
            f"{source}: expected traces of seismic data (trace identification 0, 1 or 11 to 17), got "
            f"{', '.join(left)}"
        )
    found = sorted({by_code.get(int(kind), "unnamed") for kind in kinds[usable]})
    if component is not None:
        if component not in COMPONENTS:
            raise FieldFileError(f"--component: expected {', '.join(COMPONENTS)}, got {component!r}")
        chosen = np.isin(kinds, COMPONENTS[component])
        if not chosen.any():
            raise FieldFileError(f"{source}: has no {component} component; it has {', '.join(found)}")
        if others := int((usable & ~chosen).sum()):
            told.append(f"{counted(others, 'trace')} left out: other components than {component}")
        return np.flatnonzero(chosen), told
    if len(found) > 1:
        raise FieldFileError(
            f"{source}: holds several components: {', '.join(found)}; choose one with --component"
        )
    return np.flatnonzero(usable), told


def _in_metres(source: str, traces: _All) -> tuple[np.ndarray, np.ndarray, bool]:
    """Convert positions to metres; degrees are projected around their middle (WGS 84)."""
    if len(traces.degrees) > 1:
        raise FieldFileError(f"{source}: expected positions in one unit, got metres and degrees in its files")
    if not traces.degrees.pop():
        return traces.source, traces.receiver, False
    places = np.concatenate([traces.source, traces.receiver])
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    latitude = np.radians(middle[1])
    eccentricity2 = EARTH_FLATTENING * (2 - EARTH_FLATTENING)
    root = np.sqrt(1 - eccentricity2 * np.sin(latitude) ** 2)
    north = EARTH_RADIUS_M * (1 - eccentricity2) / root**3
    east = EARTH_RADIUS_M / root * np.cos(latitude)
    scale = np.radians([1.0, 1.0]) * [east, north]
    return (traces.source - middle) * scale, (traces.receiver - middle) * scale, True


def fit_line(
    source: str, sources_m: np.ndarray, receivers_m: np.ndarray, cell_m: float, degrees: bool = False
) -> Line:
    """Fit a straight line through all positions ``(n, 2)``, directed towards larger x, or larger y if it is steeper.

    Raises:
        FieldFileError: The positions are not on a line.
    """
    places = np.unique(np.concatenate([sources_m, receivers_m]), axis=0)
    extent = np.ptp(places, axis=0)
    if not extent.any():
        raise FieldFileError(
            f"{source}: all sources and receivers are at x = {metres(places[0, 0])}, y = {metres(places[0, 1])} m; "
            "expected positions in bytes 73-88 of trace headers"
        )
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    if extent.min() <= 2 * WITHIN_CELLS * cell_m and extent.max() > extent.min():
        direction = np.array([1.0, 0.0]) if extent[0] >= extent[1] else np.array([0.0, 1.0])
    else:
        direction = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)[2][0]
        direction = direction * np.sign(direction[_steeper(direction)])
        middle = places.mean(axis=0)
    along = (places - middle) @ direction
    off = np.abs((places - middle) @ np.array([-direction[1], direction[0]]))
    if off.max() > MAX_OFF_LINE * np.ptp(along):
        raise FieldFileError(
            f"{source}: expected a straight line, got positions up to {off.max():.1f} m off a line of "
            f"{np.ptp(along):.1f} m"
        )
    receivers_along = (receivers_m - middle) @ direction
    first = middle + receivers_along.min() * direction
    zero_m = 0.0 if degrees else float(first[_steeper(direction)])
    return Line(first, direction, zero_m)


def _steeper(direction: np.ndarray) -> int:
    """Return the dominant axis of a line: 0 for x, also at 45 degrees, 1 for y."""
    return int(abs(direction[1]) > abs(direction[0]) + 1e-6)


def _origin_text(line: Line, origin_m: float) -> str:
    text = f"cell 0 at {metres(origin_m)} m"
    if abs(line.direction).max() < 1:
        return f"{text} along the line of azimuth {line.azimuth_deg:.1f} degrees"
    return f"{text} in y" if line.direction[1] else text


@dataclass(frozen=True)
class _Assigned:
    """Sources or receivers of all traces, assigned to the survey's positions; all arrays ``(n,)``.

    ``cells`` is the place on the line in cells, ``index`` is the nearest position (-1 for none), and ``off`` is the
    distance from it in cells.
    """

    cells: np.ndarray
    index: np.ndarray
    off: np.ndarray


def _assign(cells: np.ndarray, positions: Sequence[int]) -> _Assigned:
    distance = np.abs(cells[:, None] - np.asarray(positions, float)[None])
    nearest, off = distance.argmin(axis=1), distance.min(axis=1)
    return _Assigned(cells, np.where(off <= WITHIN_CELLS + SAME_CELLS, nearest, -1), off)


def _choose_nearest(
    traces: Sequence[int], sources: _Assigned, receivers: _Assigned
) -> dict[tuple[int, int], list[int]]:
    """Return the traces nearest to each source and receiver; several only if they are at the same place."""
    candidates: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in traces:
        candidates[int(sources.index[i]), int(receivers.index[i])].append(i)
    chosen: dict[tuple[int, int], list[int]] = {}
    for pair, indices in candidates.items():
        # Exact positions first; of equally distant ones, the first along the line.
        best = min(
            indices,
            key=lambda i: (
                round(float(sources.off[i]), 3),
                round(float(receivers.off[i]), 3),
                sources.cells[i],
                receivers.cells[i],
            ),
        )
        chosen[pair] = [
            i
            for i in indices
            if all(abs(end.cells[i] - end.cells[best]) <= SAME_CELLS for end in (sources, receivers))
        ]
    return chosen


def _check_sources(
    source: str,
    acquisition: Acquisition,
    origin: float,
    source_at: np.ndarray,
    found: set[int],
    allow_silent: bool,
) -> None:
    missing = [i for i in range(acquisition.n_sources) if i not in found]
    if not missing or (allow_silent and len(missing) < acquisition.n_sources):
        return
    expected = ", ".join(metres(origin + acquisition.source_cells[i] * acquisition.dx_m) for i in missing)
    places = sorted(set(np.round(source_at, 3).tolist()))
    have = ", ".join(map(metres, places[:8])) + (", ..." if len(places) > 8 else "")
    advice = "Give --origin-x-m, the place of the survey's first cell, or the --survey of this line"
    if len(missing) < acquisition.n_sources:
        advice += ", or --allow-silent to go without"
    raise FieldFileError(f"{source}: no shot at x = {expected} m; its shots are at {have} m. {advice}")


def _check_repeated(
    source: str, chosen: dict[tuple[int, int], list[int]], traces: _All, stack: bool
) -> list[str]:
    """Reject several traces of one source and receiver, or note that they are averaged."""
    repeated = {pair: indices for pair, indices in chosen.items() if len(indices) > 1}
    if not repeated:
        return []
    if not stack:
        (at, receiver), indices = min(repeated.items())
        files = ", ".join(traces.name(i) for i in indices[:4]) + (", ..." if len(indices) > 4 else "")
        raise FieldFileError(
            f"{source}: expected one trace for each source and receiver, got several for {len(repeated)}, first for "
            f"source {at} receiver {receiver}: {files}. Average repeated shots with --stack; of components, import "
            "the vertical one alone"
        )
    most = max(map(len, repeated.values()))
    return [f"up to {most} repeated shots averaged: {named('source', sorted({at for at, _ in repeated}))}"]


def _read(
    source: str, chosen: dict[tuple[int, int], list[int]], traces: _All, acquisition: Acquisition
) -> tuple[np.ndarray, list[str], list[str]]:
    """Read the gather; list unusable traces, which stay silent, by reason, and changes of sample rate."""
    gather = np.zeros(acquisition.gather_shape)
    bad: dict[str, list[str]] = defaultdict(list)
    intervals: set[float] = set()
    cut_ms: set[float] = set()
    good = 0
    for (at, receiver), indices in chosen.items():
        records = []
        for i in indices:
            interval_s, start_s = float(traces.interval_s[i]), float(traces.start_s[i])
            try:
                records.append(record_on_grid(traces.read(i), interval_s, -start_s / interval_s, acquisition))
            except FieldFileError as error:
                bad[str(error)].append(traces.name(i))
                continue
            intervals.add(interval_s)
            if start_s < 0:
                cut_ms.add(round(-1e3 * start_s, 6))
        if records:
            gather[at, :, receiver] = np.mean(records, axis=0)
            good += 1
    reasons = [
        f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}: {reason}; silent"
        for reason, names in bad.items()
    ]
    if not good:
        raise FieldFileError(f"{source}: {next(iter(bad))}")
    steps = [f"{value:g} ms before the shot cut off" for value in sorted(cut_ms)]
    steps += [
        f"resampled from {1e3 * interval_s:g} to {1e3 * acquisition.dt_s:g} ms (polyphase)"
        for interval_s in sorted(intervals)
        if not same_interval(interval_s, acquisition.dt_s)
    ]
    return gather, reasons, steps
