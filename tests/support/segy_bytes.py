"""SEG-Y and SEG-2 files byte by byte, so that a test may set any field that a real file may have."""

import struct
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Trace:
    """One trace; ``fields`` are (byte as the standard counts, struct code, value)."""

    samples: np.ndarray
    source: tuple = (0, 0)
    receiver: tuple = (0, 0)
    kind: int = 1
    scalar: int = -100
    interval_us: int = 1000
    fields: list = field(default_factory=list)


def ibm(samples):
    """IBM hexadecimal floats."""
    words = []
    for value in np.asarray(samples, float):
        exponent, size = 64, abs(value)
        while size >= 1:
            size, exponent = size / 16, exponent + 1
        while size and size < 1 / 16:
            size, exponent = size * 16, exponent - 1
        words.append(
            (int(value < 0) << 31) | (exponent << 24) | min(round(size * 2**24), 2**24 - 1) if size else 0
        )
    return np.array(words, np.uint32)


def fixed_with_gain(samples):
    """16-bit mantissas that a gain of 2 to the power of 3 multiplies."""
    return (np.uint32(3 << 16) | np.round(np.asarray(samples) / 8).astype(np.int16).view(np.uint16)).astype(
        np.uint32
    )


def three_bytes(samples, order):
    values = np.asarray(samples).astype(np.int64) & 0xFFFFFF
    parts = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.uint8)
    return (parts if order == ">" else parts[:, ::-1]).tobytes()


ENCODERS = {
    1: ("u4", ibm),
    2: ("i4", np.round),
    3: ("i2", np.round),
    4: ("u4", fixed_with_gain),
    5: ("f4", None),
}
ENCODERS |= {
    6: ("f8", None),
    8: ("i1", np.round),
    9: ("i8", np.round),
    10: ("u4", np.round),
    11: ("u2", np.round),
}
ENCODERS |= {12: ("u8", np.round), 16: ("u1", np.round)}


def encode(samples, code, order):
    if code in (7, 15):
        return three_bytes(np.round(samples), order)
    kind, prepare = ENCODERS[code]
    values = prepare(np.asarray(samples)) if prepare else np.asarray(samples)
    return values.astype(order + kind).tobytes()


def trace_bytes(trace, order, code, extensions=()):
    head = bytearray(240)
    for byte, kind, value in [
        (29, "h", trace.kind),
        (71, "h", trace.scalar),
        *((byte, "i", round(value)) for byte, value in zip((73, 77), trace.source, strict=True)),
        *((byte, "i", round(value)) for byte, value in zip((81, 85), trace.receiver, strict=True)),
        (115, "H", len(trace.samples)),
        (117, "H", trace.interval_us),
        *trace.fields,
    ]:
        struct.pack_into(order + kind, head, byte - 1, value)
    return bytes(head) + b"".join(extensions) + encode(trace.samples, code, order)


def segy_bytes(
    traces, order=">", code=5, fields=(), texts=(), revision=b"\1\0", text=b"\xc3", extensions=None
):
    """A whole file. ``fields`` are of the binary header, ``texts`` extended textual headers."""
    head = bytearray(3600)
    head[:3200] = text + bytes(3199)
    for byte, kind, value in [
        (3217, "H", traces[0].interval_us),
        (3221, "H", len(traces[0].samples)),
        (3225, "h", code),
        (3255, "h", 1),
        (3503, "h", 1),
        *fields,
    ]:
        struct.pack_into(order + kind, head, byte - 1, value)
    head[3500:3502] = revision
    extensions = extensions or [()] * len(traces)
    return (
        bytes(head)
        + b"".join(texts)
        + b"".join(
            trace_bytes(trace, order, code, more) for trace, more in zip(traces, extensions, strict=True)
        )
    )


def su_bytes(traces, order="<"):
    return b"".join(trace_bytes(trace, order, 5) for trace in traces)


def seg2_bytes(traces, delay_s=0.0, units="METERS", kinds=None, factor=1.0, interval_s=0.001):
    """A SEG-2 file of int32 traces; positions are those of the traces, in the file's unit."""

    def strings(words):
        out = b""
        for word in words:
            body = word.encode() + b"\0"
            out += struct.pack("<H", len(body) + 2) + body
        return out + struct.pack("<H", 0)

    free = strings(["ACQUISITION_DATE 25/NOV/2026", "ACQUISITION_TIME 10:00:00", f"UNITS {units}"])
    free += bytes(-len(free) % 4)
    start = 32 + 4 * len(traces) + len(free)
    blocks, pointers = [], []
    for trace, kind in zip(traces, kinds or ["SEISMIC_DATA"] * len(traces), strict=True):
        words = [
            f"DELAY {delay_s}",
            f"DESCALING_FACTOR {factor}",
            "RECEIVER_LOCATION " + " ".join(f"{v:.2f}" for v in trace.receiver),
            f"SAMPLE_INTERVAL {interval_s}",
            "SOURCE_LOCATION " + " ".join(f"{v:.2f}" for v in trace.source),
            f"TRACE_TYPE {kind}",
        ]
        body = strings(words)
        body += bytes(-len(body) % 4)
        data = np.round(np.asarray(trace.samples) / factor).astype("<i4").tobytes()
        head = struct.pack("<HHIIB", 0x4422, 32 + len(body), len(data), len(trace.samples), 2) + bytes(19)
        pointers.append(start + sum(map(len, blocks)))
        blocks.append(head + body + data)
    head = struct.pack("<HHHH", 0x3A55, 1, 4 * len(traces), len(traces)) + b"\x01\0\0\x01\n\0" + bytes(18)
    return head + struct.pack(f"<{len(traces)}I", *pointers) + free + b"".join(blocks)
