"""Trace headers and sample formats shared by SEG-Y and SU (SEG-Y revision 2.0, tables 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

HEADER_BYTES = 240
# Zero-based byte offsets of the fields used.
_FIELDS = {
    "kind": ("i2", 28),
    "scalar": ("i2", 70),
    "source_x": ("i4", 72),
    "source_y": ("i4", 76),
    "group_x": ("i4", 80),
    "group_y": ("i4", 84),
    "units": ("i2", 88),
    "delay": ("i2", 108),
    "samples": ("u2", 114),
    "interval": ("u2", 116),
    "time_scalar": ("i2", 214),
}
# Trace header extension 1 of revision 2: wider fields, used if not zero.
_EXTENSION_FIELDS = {
    "source_x": ("f8", 96),
    "source_y": ("f8", 104),
    "group_x": ("f8", 112),
    "group_y": ("f8", 120),
    "samples": ("u4", 136),
    "interval": ("f8", 144),
    "name": ("S8", 232),
}
EXTENSION_NAME = b"SEG00001"

KINDS = {
    -1: "other",
    2: "dead",
    3: "dummy",
    4: "time break",
    5: "uphole",
    6: "sweep",
    7: "timing",
    8: "water break",
    9: "near-field gun signature",
    10: "far-field gun signature",
    18: "vibrator reaction mass",
    19: "vibrator baseplate",
    20: "vibrator ground force",
    21: "vibrator reference",
    22: "time-velocity pairs",
}
# Codes 0 (unknown) and 1 (time-domain data) do not specify the component.
UNNAMED = (0, 1)
COMPONENTS = {
    "pressure": (11,),
    "vertical": (12, 15),
    "crossline": (13,),
    "inline": (14,),
    "transverse": (16,),
    "radial": (17,),
}


def header_dtype(order: str) -> np.dtype:
    """Return the trace header's dtype in byte order ``order``, ``>`` or ``<``."""
    return _dtype(_FIELDS, order)


def extension_dtype(order: str) -> np.dtype:
    """Return the dtype of trace header extension 1 in byte order ``order``."""
    return _dtype(_EXTENSION_FIELDS, order)


def _dtype(fields: dict[str, tuple[str, int]], order: str) -> np.dtype:
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind if kind.startswith("S") else order + kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": HEADER_BYTES,
        }
    )


def scaled(values: np.ndarray, scalars: np.ndarray) -> np.ndarray:
    """Apply SEG-Y scalars to header integers: positive multiplies, negative divides, 0 leaves unchanged."""
    scalars = np.where(scalars == 0, 1, scalars).astype(float)
    return np.where(scalars > 0, values * scalars, values / np.abs(scalars))


def degrees_of(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Convert coordinates in seconds of arc (2), decimal degrees (3) or DDDMMSS.ss (4) to decimal degrees."""
    size = np.abs(values)
    packed = np.floor(size / 1e4) + np.floor(size % 1e4 / 1e2) / 60 + size % 1e2 / 3600
    return np.select([units == 2, units == 4], [values / 3600, np.sign(values) * packed], values)


def _ibm(raw: np.ndarray, order: str) -> np.ndarray:
    words = raw.view(order + "u4")
    exponent = ((words >> 24) & 0x7F).astype(np.int32)
    size = np.ldexp((words & 0xFFFFFF).astype(float), 4 * (exponent - 64) - 24)
    return np.where(words >> 31, -size, size)


def _fixed_with_gain(raw: np.ndarray, order: str) -> np.ndarray:
    words = raw.view(order + "u4")
    return np.ldexp((words & 0xFFFF).astype(np.uint16).view(np.int16).astype(float), (words >> 16) & 0xFF)


def _three_bytes(signed: bool) -> Callable[[np.ndarray, str], np.ndarray]:
    def decode(raw: np.ndarray, order: str) -> np.ndarray:
        parts = raw.reshape(-1, 3).astype(np.int64)
        if order == "<":
            parts = parts[:, ::-1]
        values = (parts[:, 0] << 16) + (parts[:, 1] << 8) + parts[:, 2]
        return np.where(signed & (values >= 1 << 23), values - (1 << 24), values)

    return decode


def _plain(kind: str) -> Callable[[np.ndarray, str], np.ndarray]:
    return lambda raw, order: raw.view(order + kind)


# Sample format code -> bytes per sample, and the conversion to numbers.
SAMPLE_FORMATS: dict[int, tuple[int, Callable[[np.ndarray, str], np.ndarray]]] = {
    1: (4, _ibm),
    2: (4, _plain("i4")),
    3: (2, _plain("i2")),
    4: (4, _fixed_with_gain),
    5: (4, _plain("f4")),
    6: (8, _plain("f8")),
    7: (3, _three_bytes(signed=True)),
    8: (1, _plain("i1")),
    9: (8, _plain("i8")),
    10: (4, _plain("u4")),
    11: (2, _plain("u2")),
    12: (8, _plain("u8")),
    15: (3, _three_bytes(signed=False)),
    16: (1, _plain("u1")),
}
