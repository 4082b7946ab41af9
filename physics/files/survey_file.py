"""Read ``survey.toml``: a survey in metres and milliseconds.

A missing section defaults to the benchmark's; [sources] and [receivers] only with the benchmark's cells of 10 m. A
section that is present must be complete::

    [map]
    cell_m = 10.0
    width_m = 700.0                    # whole multiples of 5 cells
    depth_m = 700.0
    velocity_mps = [1500.0, 4500.0]    # slowest and fastest to be expected
    [record]
    length_s = 1.0
    interval_ms = 1.0
    peak_frequency_hz = 15.0           # of the source, a Ricker wavelet
    [sources]
    x_m = [0, 170, 340, 520, 690]      # x = 0 is the centre of the first cell
    depth_m = 10.0
    [receivers]
    x_m = { first = 0, step = 10, count = 70 }
    depth_m = 10.0
    [devices]
    count = 5                          # an even split; or receivers = [[0, 13], [14, 27], ...]: first and last
"""

from __future__ import annotations

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

from physics.acquisition import Acquisition, AcquisitionError
from physics.files.toml_keys import line_of, nearest
from physics.modelling import fastest_stable_mps

# Patch size of the decoder in cells; checked here, before data are generated.
PATCH_CELLS = 5
# Range of every length, time and frequency; beyond it, the arithmetic below overflows.
LEAST, MOST = 1e-6, 1e9
SECTIONS = {
    "map": ("cell_m", "width_m", "depth_m", "velocity_mps"),
    "record": ("length_s", "interval_ms", "peak_frequency_hz"),
    "sources": ("x_m", "depth_m"),
    "receivers": ("x_m", "depth_m"),
    "devices": ("count", "receivers"),
}


def read_survey(path: Path) -> Acquisition:
    """Read the survey of ``survey.toml``, or of a bundle's or data set's ``manifest.json``.

    Sources and receivers are moved to the nearest cells. Raises ``AcquisitionError``.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise AcquisitionError(
            f"{path}: cannot be read ({error}); expected survey.toml, or a manifest.json with a survey"
        ) from None
    try:
        if path.suffix == ".json":
            return _from_manifest(content)
        _check_keys(content, text)
        return _from_sections(content)
    except AcquisitionError as error:
        raise AcquisitionError(f"{path}: {error}") from None


def _from_manifest(content: Any) -> Acquisition:
    survey = content.get("acquisition") if isinstance(content, dict) else None
    if not isinstance(survey, dict):
        raise AcquisitionError("expected the manifest of a bundle or data set, with 'acquisition' in it")
    try:
        return Acquisition.from_dict(survey)
    except (KeyError, TypeError) as error:
        raise AcquisitionError(
            f"acquisition: not whole ({error}); take the file from its origin again"
        ) from None


def _check_keys(content: dict, text: str) -> None:
    """Raises ``AcquisitionError`` for the first unknown section or key, with its line and the nearest known one."""
    for name, section in content.items():
        if name not in SECTIONS or not isinstance(section, dict):
            raise AcquisitionError(
                f"{line_of(text, name)}[{name}]: {nearest(name, SECTIONS)}expected sections {', '.join(SECTIONS)}"
            )
        for key in section:
            if key not in SECTIONS[name]:
                raise AcquisitionError(
                    f"{line_of(text, key)}{name}.{key}: {nearest(key, SECTIONS[name])}expected "
                    f"{', '.join(SECTIONS[name])}"
                )


def _from_sections(content: dict) -> Acquisition:
    values = Acquisition.openfwi().to_dict()
    cell_m = values["dx_m"]
    if "map" in content:
        cell_m = values["dx_m"] = _number(content, "map", "cell_m")
        for key, cells in (("depth_m", "n_depth"), ("width_m", "n_width")):
            values[cells] = _cells(content, key, cell_m)
        values["velocity_min_mps"], values["velocity_max_mps"] = _bounds(content)
    if "record" in content:
        values["dt_s"] = _number(content, "record", "interval_ms") / 1e3
        length_s = _number(content, "record", "length_s")
        values["n_time"] = round(length_s / values["dt_s"])
        frequency_hz = values["peak_frequency_hz"] = _number(content, "record", "peak_frequency_hz")
        if length_s < 1 / frequency_hz or values["n_time"] < 2:
            raise AcquisitionError(
                f"record.length_s: expected at least a period of the source, {1 / frequency_hz:.3g} s, and two "
                f"samples, got {length_s:g} s"
            )
    lacking = [name for name in ("sources", "receivers") if name not in content]
    if lacking and cell_m != Acquisition.openfwi().dx_m:
        raise AcquisitionError(
            f"[{lacking[0]}]: expected with cells of {cell_m:g} m, got none; OpenFWI's positions are on cells of 10 m, "
            "so write your own"
        )
    for name in ("source", "receiver"):
        if f"{name}s" in content:
            values[f"{name}_cells"] = _places(content, f"{name}s", cell_m)
            values[f"{name}_row"] = round(_number(content, f"{name}s", "depth_m") / cell_m)
    values["device_receivers"] = _devices(content, len(values["receiver_cells"]))
    survey = Acquisition.from_dict(values)
    if survey.velocity_max_mps >= (stable := fastest_stable_mps(survey)):
        raise AcquisitionError(
            f"record.interval_ms: steps of {1e3 * survey.dt_s:g} ms on cells of {cell_m:g} m carry up to {stable:.0f} "
            f"m/s, not {survey.velocity_max_mps:g}; take a shorter step or larger cells"
        )
    return survey


def _number(content: dict, section: str, key: str) -> float:
    value = content[section].get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise AcquisitionError(f"{section}.{key}: expected a positive number, got {value!r}")
    if not LEAST <= value <= MOST:
        raise AcquisitionError(
            f"{section}.{key}: expected a number of {LEAST:g} to {MOST:g}, got {value!r}; mind the unit"
        )
    return float(value)


def _cells(content: dict, key: str, cell_m: float) -> int:
    size_m = _number(content, "map", key)
    cells = round(size_m / cell_m)
    if abs(cells * cell_m - size_m) > 1e-6 * size_m or cells % PATCH_CELLS or not cells:
        raise AcquisitionError(
            f"map.{key}: expected a whole multiple of {PATCH_CELLS} cells, {PATCH_CELLS * cell_m:g} m, got {size_m:g}"
        )
    return cells


def _bounds(content: dict) -> tuple[float, float]:
    match content["map"].get("velocity_mps"):
        case [int() | float() as low, int() | float() as high] if 0 < low < high:
            return float(low), float(high)
        case other:
            raise AcquisitionError(f"map.velocity_mps: expected [slowest, fastest] in m/s, got {other!r}")


def _places(content: dict, section: str, cell_m: float) -> list[int]:
    given = content[section].get("x_m")
    match given:
        case {"first": int() | float() as first, "step": int() | float() as step, "count": int() as count}:
            places = [first + i * step for i in range(count)]
        case list() if all(isinstance(x, int | float) and not isinstance(x, bool) for x in given):
            places = given
        case _:
            raise AcquisitionError(
                f"{section}.x_m: expected a list of metres or {{ first, step, count }}, got {given!r}"
            )
    # NaN is not within the range either.
    if wrong := [x for x in places if not abs(x) <= MOST]:
        raise AcquisitionError(f"{section}.x_m: expected finite positions in metres, got {wrong[0]!r}")
    cells = [round(x / cell_m) for x in places]
    if any(b <= a for a, b in pairwise(cells)):
        raise AcquisitionError(
            f"{section}.x_m: expected places from left to right, no two in one cell of {cell_m:g} m"
        )
    return cells


def _devices(content: dict, n_receivers: int) -> list[list[int]]:
    match content.get("devices", {"count": 5}):
        case {"count": int() as count, **rest} if not rest and 1 <= count <= n_receivers:
            return [list(group) for group in Acquisition.split_evenly(n_receivers, count)]
        case {"receivers": list() as groups, **rest} if not rest and all(map(_is_group, groups)):
            # As in node.toml: two numbers are the first and the last.
            return [list(range(g[0], g[1] + 1)) if len(g) == 2 else g for g in groups]
        case other:
            raise AcquisitionError(
                f"devices: expected count = 1 to {n_receivers}, or receivers = [[first, last], ...], got {other!r}"
            )


def _is_group(group: Any) -> bool:
    return isinstance(group, list) and bool(group) and all(type(i) is int for i in group)
