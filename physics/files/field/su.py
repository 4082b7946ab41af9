"""Read SU (Seismic Unix): SEG-Y traces without file headers, IEEE floats in either byte order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physics.files.field import segy
from physics.files.field.trace_headers import KINDS
from physics.files.field.traces import FieldFileError, ReadOptions, ShotTraces

IEEE, WIDTH = 5, 4
# Longest sample interval of a recording of shots.
LONGEST_US = 16_000


class SuFormat:
    """SU: consecutive traces, each as long as its header says."""

    name = "SU"
    suffixes = (".su",)

    def matches(self, head: bytes, size: int) -> bool:
        """Return True if the first header's trace length is repeated by the second header or fills the file."""
        return any(_begins(head, size, order) for order in ("little", "big"))

    def read(self, path: Path, options: ReadOptions) -> ShotTraces:
        size = path.stat().st_size
        raw = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
        fitting = []
        for order in ("<", ">"):
            if layout := segy.walk(raw, 0, size, WIDTH, order):
                fitting.append((order, layout, segy.read_fields(raw, layout.offsets, order)))
        if not fitting:
            raise FieldFileError(
                f"{path}: not a whole SU file (its {size} bytes are not a whole number of traces); copy it again"
            )
        # Both orders fit where the two bytes of the traces' length are the same.
        order, layout, header = min(fitting, key=lambda found: _implausible(found[2]))
        interval_s = header["interval"] * 1e-6
        if options.interval_s is not None:
            interval_s = np.full(len(header), options.interval_s)
        if not interval_s.all():
            raise FieldFileError(f"{path}: has no sample interval in its headers; give --interval-ms")
        samples = segy.Samples(raw, layout, order, IEEE)
        return segy.build_traces(path, segy.TraceFields(header), samples, interval_s)


def _implausible(header: np.ndarray) -> int:
    """Count fields of ``header`` that no recording has: such values come from the other byte order."""
    wrong_kind = (header["kind"] < min(KINDS)) | (header["kind"] > max(KINDS))
    return int(wrong_kind.sum() + (header["interval"] > LONGEST_US).sum())


def _begins(head: bytes, size: int, order: str) -> bool:
    def samples(at: int) -> int:
        return int.from_bytes(head[at + 114 : at + 116], order)  # type: ignore[arg-type]

    if len(head) < 240 or not samples(0):
        return False
    second = 240 + WIDTH * samples(0)
    return second == size or (second + 240 <= len(head) and samples(second) == samples(0))


FORMAT = SuFormat()
