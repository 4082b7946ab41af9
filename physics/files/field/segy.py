"""SEG-Y, revisions 0 to 2, in both byte orders, with traces of one length or of many (SEG Technical Standards)."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physics.files.field import trace_headers as headers
from physics.files.field.traces import FOOT_M, FieldFileError, ReadOptions, ShotTraces

TEXT_BYTES, FILE_HEADER_BYTES = 3200, 3600
ORDER_MARKS = {b"\x01\x02\x03\x04": ">", b"\x04\x03\x02\x01": "<"}
END_OF_TEXT = "((SEG:ENDTEXT))"
FEET = 2
# Tolerance for intervals that header integers round to whole microseconds.
ROUNDED_US = 1.0


class SegyFormat:
    """Text and binary file header, then traces."""

    name = "SEG-Y"
    suffixes = (".sgy", ".segy")

    def matches(self, head: bytes, size: int) -> bool:
        if len(head) < FILE_HEADER_BYTES:
            return False
        # Text header lines begin with C in EBCDIC or ASCII; otherwise the sample format code must be valid.
        return head[0] in b"\xc3C" or _guess_order(head) is not None

    def read(self, path: Path, options: ReadOptions) -> ShotTraces:
        size = path.stat().st_size
        if size < FILE_HEADER_BYTES:
            raise FieldFileError(
                f"{path}: not a whole SEG-Y file (expected {FILE_HEADER_BYTES} bytes of headers, got {size}); "
                "copy it again"
            )
        raw = np.memmap(path, np.uint8, mode="r")
        head = _BinaryHeader.parse(path, bytes(raw[:FILE_HEADER_BYTES]))
        start = head.first_trace or FILE_HEADER_BYTES + TEXT_BYTES * _extended_texts(path, raw, head)
        layout = _layout(path, raw, head, start)
        fields = TraceFields(
            read_fields(raw, layout.offsets, head.order),
            layout.extension(raw, head.order),
            head.revision >= 1,
        )
        interval_s, steps = _intervals(path, head, fields, options)
        unit_m = 1.0
        if head.unit == FEET:
            unit_m = FOOT_M
            steps = [*steps, "positions in feet, 0.3048 m each"]
        return build_traces(
            path, fields, Samples(raw, layout, head.order, head.format), interval_s, unit_m, steps
        )


@dataclass(frozen=True)
class Layout:
    """Position of traces in the file: byte ``offsets`` of headers, ``samples`` and header ``extensions`` per trace."""

    offsets: np.ndarray
    samples: np.ndarray
    extensions: int = 0

    def extension(self, raw: np.ndarray, order: str) -> np.ndarray | None:
        """Return trace header extension 1 of every trace; None if there is none."""
        if not self.extensions:
            return None
        fields = read_fields(raw, self.offsets + headers.HEADER_BYTES, order, headers.extension_dtype(order))
        return fields if np.all(fields["name"] == headers.EXTENSION_NAME) else None


@dataclass(frozen=True)
class TraceFields:
    """Header fields of all traces ``(n,)``, and of their header extension 1 if there is one.

    ``time_scalars`` is set if bytes 215-216 scale the times. Revision 0 and SU do not assign them.
    """

    header: np.ndarray
    extension: np.ndarray | None = None
    time_scalars: bool = False

    def scaled(self, name: str) -> np.ndarray:
        """Return a scaled coordinate, or the unscaled one of the header extension if present."""
        values = headers.scaled(self.header[name], self.header["scalar"])
        if self.extension is None:
            return values
        return np.where(self.extension[name] != 0, self.extension[name], values)

    def start_s(self) -> np.ndarray:
        """Return the time of each trace's first sample after the shot."""
        scalars = self.header["time_scalar"] if self.time_scalars else np.zeros(len(self.header), int)
        return headers.scaled(self.header["delay"], scalars) * 1e-3


@dataclass(frozen=True)
class Samples:
    """Samples of all traces: the file's bytes ``raw``, the traces in it, byte order and sample format code."""

    raw: np.ndarray
    layout: Layout
    order: str
    code: int

    def read(self, index: int) -> np.ndarray:
        """Return the samples of one trace."""
        width, decode = headers.SAMPLE_FORMATS[self.code]
        first = self.layout.offsets[index] + headers.HEADER_BYTES * (1 + self.layout.extensions)
        return decode(np.array(self.raw[first : first + self.layout.samples[index] * width]), self.order)


@dataclass(frozen=True)
class _BinaryHeader:
    order: str
    format: int
    interval_us: float
    samples: int
    revision: int
    fixed: bool
    extended_texts: int
    extensions: int
    first_trace: int
    trailers: int
    unit: int

    @classmethod
    def parse(cls, path: Path, head: bytes) -> _BinaryHeader:
        order = _guess_order(head) or ">"

        def field(byte: int, kind: str) -> float:
            return struct.unpack_from(order + kind, head, byte - 1)[0]

        code = int(field(3225, "h"))
        if code not in headers.SAMPLE_FORMATS:
            known = ", ".join(map(str, headers.SAMPLE_FORMATS))
            raise FieldFileError(
                f"{path}: expected a sample format code of {known} in bytes 3225-3226, got {code}; "
                "export it from its program again, as IEEE floating point (5)"
            )
        # Revision 2 stores major and minor revision in one byte each; before, it was a fixed-point number: 0x0100.
        revision = max(head[3500], head[3501] if head[3500] == 0 and head[3501] in (1, 2) else 0)
        interval_us, samples = float(field(3217, "H")), int(field(3221, "H"))
        extensions = first_trace = trailers = 0
        if revision >= 2:
            wide_us, wide_samples = float(field(3273, "d")), int(field(3269, "I"))
            interval_us = wide_us if 0 < wide_us < 1e9 else interval_us
            samples = wide_samples or samples
            extensions, first_trace = int(field(3507, "i")), int(field(3521, "Q"))
            trailers = max(int(field(3529, "i")), 0)
        return cls(
            order,
            code,
            interval_us,
            samples,
            revision,
            int(field(3503, "h")) == 1,
            int(field(3505, "h")),
            max(extensions, 0),
            first_trace,
            trailers,
            int(field(3255, "h")),
        )


def _guess_order(head: bytes) -> str | None:
    """Return the byte order by the constant of revision 2, else by the sample format code; None if neither is valid."""
    if order := ORDER_MARKS.get(head[3296:3300]):
        return order
    for order in (">", "<"):
        if struct.unpack_from(order + "h", head, 3224)[0] in headers.SAMPLE_FORMATS:
            return order
    return None


def _extended_texts(path: Path, raw: np.ndarray, head: _BinaryHeader) -> int:
    """Return the number of extended text headers; if the file header says -1, an end stanza marks the last one."""
    if head.extended_texts >= 0:
        return head.extended_texts
    count = (len(raw) - FILE_HEADER_BYTES) // TEXT_BYTES
    for index in range(count):
        start = FILE_HEADER_BYTES + index * TEXT_BYTES
        text = bytes(raw[start : start + TEXT_BYTES])
        if any(
            END_OF_TEXT in re.sub(r"\s", "", text.decode(code, "replace")).upper()
            for code in ("cp037", "latin1")
        ):
            return index + 1
    raise FieldFileError(
        f"{path}: expected ((SEG: EndText)) after a variable number of extended textual headers, found none; "
        "copy it again"
    )


def _layout(path: Path, raw: np.ndarray, head: _BinaryHeader, start: int) -> Layout:
    """Find all traces. The fixed-length flag decides what is tried first; the last trace must end at the file's end."""
    end = len(raw) - TEXT_BYTES * head.trailers
    width = headers.SAMPLE_FORMATS[head.format][0]
    fixed = lambda: fixed_layout(start, end, width, head.samples, head.extensions)  # noqa: E731
    variable = lambda: walk(raw, start, end, width, head.order, head.samples, head.extensions)  # noqa: E731
    for attempt in (fixed, variable) if head.fixed else (variable, fixed):
        if (layout := attempt()) is not None:
            return layout
    raise FieldFileError(
        f"{path}: not a whole SEG-Y file ({end - start} bytes after the headers are not a whole number of traces of "
        f"{head.samples} samples, nor of what their own headers say); copy it again"
    )


def fixed_layout(start: int, end: int, width: int, samples: int, extensions: int = 0) -> Layout | None:
    """Return the layout for traces of one length; None if they do not fill the file."""
    trace = headers.HEADER_BYTES * (1 + extensions) + samples * width
    if not samples or end <= start or (end - start) % trace:
        return None
    offsets = np.arange(start, end, trace)
    return Layout(offsets, np.full(len(offsets), samples), extensions)


def walk(
    raw: np.ndarray, start: int, end: int, width: int, order: str, default: int = 0, extensions: int = 0
) -> Layout | None:
    """Follow each trace's own length (``default`` if it is 0); return None if the traces miss the file's end."""
    offsets, lengths, at = [], [], start
    kind = np.dtype(order + "u2")
    front = headers.HEADER_BYTES * (1 + extensions)
    while at + front <= end:
        samples = int(raw[at + 114 : at + 116].view(kind)[0]) or default
        if not samples:
            return None
        offsets.append(at)
        lengths.append(samples)
        at += front + samples * width
    if at != end or not offsets:
        return None
    return Layout(np.array(offsets), np.array(lengths), extensions)


def read_fields(
    raw: np.ndarray, offsets: np.ndarray, order: str, dtype: np.dtype | None = None
) -> np.ndarray:
    """Read the trace headers ``(n,)`` at ``offsets``."""
    block = raw[offsets[:, None] + np.arange(headers.HEADER_BYTES)]
    return np.ascontiguousarray(block).view(dtype or headers.header_dtype(order))[:, 0]


def _intervals(
    path: Path, head: _BinaryHeader, fields: TraceFields, options: ReadOptions
) -> tuple[np.ndarray, list[str]]:
    """Return the sample interval of every trace.

    Contradicting headers are rejected: a wrong interval gives a map of wrong velocities.
    """
    own_us = fields.header["interval"].astype(float)
    if fields.extension is not None:
        own_us = np.where(fields.extension["interval"] > 0, fields.extension["interval"], own_us)
    if options.interval_s is not None:
        said = sorted({head.interval_us, *own_us.tolist()} - {0.0})
        found = ", ".join(f"{value / 1e3:g}" for value in said) or "none"
        return np.full(len(own_us), options.interval_s), [
            f"interval of {1e3 * options.interval_s:g} ms as given; headers say {found} ms"
        ]
    own_us = np.where(own_us == 0, head.interval_us, own_us)
    if head.interval_us:
        own_us = np.where(np.abs(own_us - head.interval_us) < ROUNDED_US, head.interval_us, own_us)
    found_us = sorted(set(own_us.tolist()))
    if found_us[0] == 0:
        raise FieldFileError(f"{path}: has no sample interval in its headers; give --interval-ms")
    changes = len(found_us) > 1
    if head.interval_us and found_us != [head.interval_us] and (head.fixed or not changes):
        raise FieldFileError(
            f"{path}: expected one sample interval, got {head.interval_us / 1e3:g} ms in the file header and "
            f"{', '.join(f'{value / 1e3:g}' for value in found_us)} ms in trace headers; give the right one with "
            "--interval-ms"
        )
    steps = [
        f"intervals of {', '.join(f'{value / 1e3:g}' for value in found_us)} ms, each trace by its own header"
    ]
    return own_us * 1e-6, steps if changes else []


def build_traces(
    path: Path,
    fields: TraceFields,
    samples: Samples,
    interval_s: np.ndarray,
    unit_m: float = 1.0,
    steps: Sequence[str] = (),
) -> ShotTraces:
    """Build SEG-Y or SU traces from their headers; lengths are in units of ``unit_m`` metres.

    Raises:
        FieldFileError: Coordinates are in several units.
    """
    places = {
        end: np.stack([fields.scaled(f"{end}_{axis}") for axis in "xy"], axis=1)
        for end in ("source", "group")
    }
    angular = np.isin(fields.header["units"], (2, 3, 4))
    if angular.any() and not angular.all():
        raise FieldFileError(f"{path}: expected positions in one unit, got lengths and angles (bytes 89-90)")
    degrees = bool(angular.all())
    if degrees:
        units = fields.header["units"][:, None]
        places = {end: headers.degrees_of(values, units) for end, values in places.items()}
    else:
        places = {end: values * unit_m for end, values in places.items()}
    return ShotTraces(
        names=[f"{path.name} trace {number}" for number in range(1, len(fields.header) + 1)],
        kind=fields.header["kind"].astype(int),
        source=places["source"],
        receiver=places["group"],
        degrees=degrees,
        interval_s=interval_s,
        start_s=fields.start_s(),
        read=samples.read,
        steps=tuple(steps),
    )


FORMAT = SegyFormat()
