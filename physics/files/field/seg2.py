"""Read SEG-2, the format of engineering seismographs (Pullan, 1990), with ObsPy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from physics.files.field.traces import FOOT_M, FieldFileError, ReadOptions, ShotTraces

MAGIC = (b"\x55\x3a", b"\x3a\x55")
UNITS_M = {"METERS": 1.0, "FEET": FOOT_M, "INCHES": FOOT_M / 12, "CENTIMETERS": 0.01, "NONE": 1.0, "": 1.0}
# SEG-2 trace types and the corresponding SEG-Y trace identification codes.
KINDS = {"SEISMIC_DATA": 1, "": 1, "DEAD": 2, "TEST_DATA": -1, "UPHOLE": 5, "TIME_BREAK": 4}
OTHER = -1


class Seg2Format:
    """SEG-2: one shot per file; positions are free text that the operator typed."""

    name = "SEG-2"
    suffixes = (".sg2", ".seg2", ".dat")

    def matches(self, head: bytes, size: int) -> bool:
        return head[:2] in MAGIC

    def read(self, path: Path, options: ReadOptions) -> ShotTraces:
        stream = _read_stream(path)
        if not len(stream):
            raise FieldFileError(f"{path}: holds no traces")
        heads: list[dict[str, Any]] = [dict(trace.stats.seg2) for trace in stream]
        unit = str(heads[0].get("UNITS", "")).strip().upper()
        if unit not in UNITS_M:
            raise FieldFileError(f"{path}: UNITS: expected {', '.join(filter(None, UNITS_M))}, got {unit!r}")
        scale = UNITS_M[unit]
        interval_s = np.array([trace.stats.delta for trace in stream])
        if options.interval_s is not None:
            interval_s[:] = options.interval_s
        if not np.all(interval_s > 0):
            raise FieldFileError(f"{path}: has no SAMPLE_INTERVAL; give --interval-ms")
        # The factor converts stored counts to the channel's unit, mostly mV; it differs between channels.
        factors = [_numbers(path, head, "DESCALING_FACTOR")[:1] or [1.0] for head in heads]
        return ShotTraces(
            names=[f"{path.name} trace {number}" for number in range(1, len(stream) + 1)],
            kind=np.array([KINDS.get(str(h.get("TRACE_TYPE", "")).strip().upper(), OTHER) for h in heads]),
            source=scale * np.array([_place(path, head, "SOURCE_LOCATION") for head in heads]),
            receiver=scale * np.array([_place(path, head, "RECEIVER_LOCATION") for head in heads]),
            degrees=False,
            interval_s=interval_s,
            start_s=np.array([(_numbers(path, head, "DELAY")[:1] or [0.0])[0] for head in heads]),
            read=lambda index: stream[index].data * factors[index][0],
            steps=(f"positions in {unit.lower()}",) if scale not in (0.0, 1.0) else (),
        )


def _read_stream(path: Path) -> Any:
    """Return ObsPy's stream of a SEG-2 file; a trace without SAMPLE_INTERVAL has a delta of 0."""
    from obspy.io.seg2.seg2 import SEG2

    class Reader(SEG2):
        def parse_free_form(self, free_form_str: bytes, attrib_dict: Any) -> None:
            super().parse_free_form(free_form_str, attrib_dict)
            # ObsPy requires it, but --interval-ms can stand for it.
            attrib_dict.setdefault("SAMPLE_INTERVAL", "0")

    try:
        with warnings.catch_warnings():
            # Both warnings concern custom headers and delays, which are handled by the caller.
            warnings.simplefilter("ignore")
            return Reader().read_file(str(path))
    except Exception as error:  # ObsPy raises many exception types for damaged files.
        if "could not convert string to float" in str(error):
            raise FieldFileError(
                f"{path}: expected numbers in SAMPLE_INTERVAL, DELAY and DESCALING_FACTOR, got another text ({error}); "
                "correct them, or export as SEG-Y"
            ) from None
        raise FieldFileError(f"{path}: not a whole SEG-2 file ({error}); copy it again") from None


def _numbers(path: Path, head: dict[str, Any], key: str) -> list[float]:
    try:
        return [float(word) for word in str(head.get(key, "")).replace(",", " ").split()]
    except ValueError:
        raise FieldFileError(f"{path}: {key}: expected numbers, got {head[key]!r}") from None


def _place(path: Path, head: dict[str, Any], key: str) -> tuple[float, float]:
    values = _numbers(path, head, key)
    if not values:
        raise FieldFileError(
            f"{path}: expected {key} on every trace, found none; enter positions on the seismograph or export as SEG-Y"
        )
    return values[0], values[1] if len(values) > 1 else 0.0


FORMAT = Seg2Format()
