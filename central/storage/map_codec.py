"""Compress maps: whole m/s, differences along depth, byte planes, zlib.

A decoder's map of 70 x 70 cells takes 4.9 kB in place of 19.6 kB. Rounding costs at most 0.5 m/s, a hundredth of a
map's error. Values that are not finite or beyond 30 km/s are stored exactly, as float32.
"""

from __future__ import annotations

import zlib

import numpy as np

from central.errors import CentralError

# First byte of the blob: the encoding.
_ROUNDED, _EXACT = b"\x01", b"\x02"
_MAX_MPS = 30_000.0


class MapCodecError(CentralError, ValueError):
    """The bytes are not a map of the expected shape."""


def encode_map(values: np.ndarray) -> bytes:
    """Compress ``values (nz, nx)`` in m/s."""
    values = np.ascontiguousarray(values, np.float32)
    if not (np.abs(values) <= _MAX_MPS).all():
        return _EXACT + _compress(_planes(values.astype("<f4")))
    rounded = np.rint(values).astype("<i2")
    # int16 differences wrap around; the cumulative sum wraps back.
    differences = rounded.copy()
    differences[1:] -= rounded[:-1]
    return _ROUNDED + _compress(_planes(differences))


def decode_map(blob: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Decode the bytes of ``encode_map`` to a float32 map of ``shape (nz, nx)`` in m/s.

    Raises:
        MapCodecError: The bytes are not a map of this shape.
    """
    kind = blob[:1]
    try:
        dtype = np.dtype({_ROUNDED: "<i2", _EXACT: "<f4"}[kind])
        expected = dtype.itemsize * shape[0] * shape[1]
        inflater = zlib.decompressobj()
        # Limit the output: damaged bytes could expand to gigabytes.
        planes = inflater.decompress(blob[1:], expected + 1)
        if len(planes) != expected:
            raise MapCodecError(f"map: expected {expected} bytes, got {len(planes)}")
    except (KeyError, zlib.error) as error:
        raise MapCodecError(f"map: not a compressed map ({error!r})") from None
    values = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1).T.copy().view(dtype).reshape(shape)
    if kind == _EXACT:
        return values.astype(np.float32)
    return values.cumsum(axis=0, dtype=np.int16).astype(np.float32)


def _compress(planes: bytes) -> bytes:
    """Compress by entropy and run lengths alone; a search for repeats takes three times as long for 6 % fewer bytes."""
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    return deflate.compress(planes) + deflate.flush()


def _planes(values: np.ndarray) -> bytes:
    """Split 16-bit values into low and high byte planes; neighbouring bytes are then similar."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()
