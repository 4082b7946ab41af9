"""Cut continuous records at the shot times; a geometry file lists receivers and shots."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from physics.acquisition import Acquisition
from physics.files.field.grid import record_on_grid, same_interval
from physics.files.field.traces import ChannelRecords, FieldFileError, Segment
from physics.files.times import format_time, parse_time_ns
from physics.files.toml_keys import line_of, nearest

# Keys of a geometry file.
KEYS = ("receivers", "shots")
_DATE_ALONE = re.compile(r"\d{4}[-/]?\d{2}[-/]?\d{2}")


def read_receivers(path: Path, acquisition: Acquisition) -> list[str]:
    """Read the SEED ids of the survey's receivers from a geometry file, in order.

    "" is a receiver without a channel. Raises ``FieldFileError``.
    """
    names = _list_of(path, _read_toml(path), "receivers", acquisition.n_receivers)
    for index, name in enumerate(names):
        if name == "":
            continue
        parts = name.split(".") if isinstance(name, str) else []
        if len(parts) != 4 or not all((parts[0], parts[1], parts[3])) or re.search(r"[*?\[\]\s]", str(name)):
            raise FieldFileError(
                f"{path}: receiver {name!r}: expected a SEED id NETWORK.STATION.LOCATION.CHANNEL without wildcards, "
                f'or "" for a receiver without a channel'
            )
        if (before := names.index(name)) < index:
            raise FieldFileError(
                f"{path}: expected each receiver once, got {name} twice, as {before} and as {index}"
            )
    return names


def read_shots(path: Path, acquisition: Acquisition) -> list[int]:
    """Read the times of the survey's sources from a geometry file, in order. Raises ``FieldFileError``.

    Times are ns since 1970.
    """
    times: list[int] = []
    for index, value in enumerate(_list_of(path, _read_toml(path), "shots", acquisition.n_sources)):
        try:
            if _DATE_ALONE.fullmatch(str(value)):
                raise ValueError(f"expected a time with its hour, got {str(value)!r}")
            time = parse_time_ns(str(value))
        except ValueError as error:
            raise FieldFileError(f"{path}: shots: {index}: {error}") from None
        if time in times:
            raise FieldFileError(
                f"{path}: shots: {value} is named twice, as {times.index(time)} and as {index}"
            )
        times.append(time)
    return times


def cut_stations(
    source: str, records: ChannelRecords, acquisition: Acquisition, geometry: Path
) -> tuple[np.ndarray, list[str]]:
    """Cut a gather ``(S, T, R)`` on the survey's grid out of continuous records.

    A receiver without a complete record of a shot is silent for that shot. The steps list it with the reason.

    Raises:
        FieldFileError: The geometry file is invalid, or no receiver has a record of any shot.
    """
    names, shots = read_receivers(geometry, acquisition), read_shots(geometry, acquisition)
    gather = np.zeros(acquisition.gather_shape)
    reasons: dict[int, dict[str, list[int]]] = {}
    rates: set[float] = set()
    used = set()
    for receiver, name in enumerate(names):
        pieces = sorted(records.channels.get(name, []), key=lambda piece: piece.start_ns)
        for index, shot in enumerate(shots):
            try:
                if not pieces:
                    raise FieldFileError("not in the recording" if name else "without a channel")
                gather[index, :, receiver], interval_s = _cut(pieces, shot, acquisition)
            except FieldFileError as error:
                reasons.setdefault(receiver, {}).setdefault(str(error), []).append(index)
            else:
                used.add(receiver)
                rates.add(interval_s)
    told = [
        f"receiver {receiver} ({names[receiver] or 'unnamed'}) is silent"
        + (
            ""
            if len(sources) == len(shots)
            else f" for shot {', '.join(format_time(shots[i]) for i in sources)}"
        )
        + f": {reason}"
        for receiver, found in reasons.items()
        for reason, sources in found.items()
    ]
    if not used:
        if not any(name in records.channels for name in names):
            have = ", ".join(sorted(records.channels)[:8])
            raise FieldFileError(f"{source}: none of the geometry's receivers is there; it has {have}")
        raise FieldFileError(f"{source}: no receiver has a record of a shot; {told[0]}")
    steps = [f"{len(used)} of {len(names)} receivers of {source}, cut at the shots' times", *records.steps]
    for interval_s in sorted(rates):
        if not same_interval(interval_s, acquisition.dt_s):
            steps.append(f"resampled from {1e3 * interval_s:g} to {1e3 * acquisition.dt_s:g} ms (polyphase)")
    return gather, [*steps, *told]


def _cut(pieces: list[Segment], shot_ns: int, acquisition: Acquisition) -> tuple[np.ndarray, float]:
    """Return one record of the survey from the shot on, and its original sample interval."""
    length_ns = round(acquisition.n_time * acquisition.dt_s * 1e9)
    # Include samples after the record: the filter needs neighbours.
    near = [
        piece
        for piece in pieces
        if piece.start_ns <= shot_ns + 2 * length_ns and piece.end_ns >= shot_ns - piece.interval_s * 1e9
    ]
    segments = join(near)
    for segment in segments:
        first = (shot_ns - segment.start_ns) / (1e9 * segment.interval_s)
        if -1e-3 <= first <= len(segment.samples):
            interval_s = segment.interval_s
            have_s = (len(segment.samples) - first) * interval_s
            if (
                have_s + interval_s / 2 < acquisition.n_time * acquisition.dt_s
                and segment is not segments[-1]
            ):
                raise FieldFileError(f"has a gap {have_s:.3g} s after the shot")
            return record_on_grid(segment.samples, interval_s, first, acquisition), interval_s
    if pieces[0].start_ns > shot_ns or pieces[-1].end_ns < shot_ns:
        raise FieldFileError("its record does not reach the shot; it is too short or has another clock")
    raise FieldFileError("has a gap at the shot")


def join(pieces: list[Segment]) -> list[Segment]:
    """Join pieces of one channel with gaps below half a sample; overlapping samples count once."""
    joined: list[Segment] = []
    waiting: list[Segment] = []

    def close() -> None:
        if waiting:
            samples = np.concatenate([piece.samples for piece in waiting])
            joined.append(Segment(waiting[0].start_ns, waiting[0].interval_s, samples))
            waiting.clear()

    for piece in sorted(pieces, key=lambda piece: piece.start_ns):
        if waiting and same_interval(piece.interval_s, waiting[-1].interval_s):
            last = waiting[-1]
            # Gap to the expected next sample, in samples; negative for an overlap.
            ahead = (piece.start_ns - last.end_ns) / (1e9 * piece.interval_s) - 1
            if abs(ahead) <= 0.5:
                waiting.append(piece)
                continue
            again = -round(ahead)
            if ahead < 0 and abs(ahead + again) <= 0.5 and again >= len(piece.samples):
                continue
            if ahead < 0 and np.array_equal(last.samples[-again:], piece.samples[:again]):
                start_ns = piece.start_ns + round(again * piece.interval_s * 1e9)
                waiting.append(Segment(start_ns, piece.interval_s, piece.samples[again:]))
                continue
        close()
        waiting.append(piece)
    close()
    return joined


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise FieldFileError(f"{path}: cannot be read ({error}); expected TOML") from None
    for key in content:
        if key not in KEYS:
            raise FieldFileError(
                f"{path}: {line_of(text, key)}unknown key {key!r}; {nearest(key, KEYS)}known are {', '.join(KEYS)}"
            )
    return content


def _list_of(path: Path, content: dict[str, Any], key: str, count: int) -> list[Any]:
    values = content.get(key)
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values)}" if isinstance(values, list) else "none"
        hint = '; write "" for a receiver without a channel' if key == "receivers" else ""
        raise FieldFileError(f"{path}: expected a list of {count} {key}, got {got}{hint}")
    return values
