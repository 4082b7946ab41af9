"""A latent's values in 8 bits, or their top 4: half the bytes, for about 1 % of map error (docs/results/fidelity.md).

Nothing is trained for it and no field says so: the payload's length tells. Of 4 bits, two values share a byte, the
first in its upper half; the centre reads each as the middle of the 16 int8 values that it may have been.
"""

from __future__ import annotations

import numpy as np

BITS = (8, 4)


class RateError(ValueError):
    """A payload that is no latent of the length at hand."""


def payload_bytes(latent: int, bits: int) -> int:
    """Bytes of a latent of so many values."""
    return (latent * bits + 7) // 8


def pack(latent: np.ndarray, bits: int) -> bytes:
    """int8 ``(n,)`` -> the payload of a record, ``bits`` (8 or 4) a value."""
    if bits == 8:
        return latent.astype(np.int8).tobytes()
    halves = (latent.astype(np.int8).view(np.uint8) >> 4).astype(np.uint8)
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return (halves[::2] << 4 | halves[1::2]).astype(np.uint8).tobytes()


def is_latent(payload: bytes, latent: int) -> bool:
    """Whether a payload may be a latent of so many values."""
    return len(payload) in [payload_bytes(latent, bits) for bits in BITS]


def check_payload(payload: bytes, latent: int) -> None:
    """Raises ``RateError`` for what cannot be a latent of so many values."""
    if not is_latent(payload, latent):
        lengths = " or ".join(str(payload_bytes(latent, bits)) for bits in BITS)
        raise RateError(f"expected a latent of {lengths} bytes, got {len(payload)}")


def unpack(payload: bytes, latent: int) -> np.ndarray:
    """Inverse of ``pack``, but for the bits that were left out: int8 ``(latent,)``. Raises ``RateError``."""
    check_payload(payload, latent)
    values = np.frombuffer(payload, np.uint8)
    if len(values) == latent:
        return values.view(np.int8)
    halves = np.stack([values >> 4, values & 15], axis=1).ravel()[:latent]
    return (halves << 4 | 8).astype(np.uint8).view(np.int8)
