"""How much of a latent is sent: all of its values or the first of them, each in 8 bits or in its upper 4.

No field of a record says which: the payload's length does. Every latent of n values may go as n bytes (8 bits a
value) and as half as many (4 bits); which shorter ones there are, and what they hold, is the model's, in the
manifest's ``prefixes``. Of 4 bits, two values share a byte, the first in its upper half; the centre reads each as
the middle of the 16 int8 values that it may have been. Values that were not sent are read as the zero point: a model
with prefixes was trained on that (``models/networks/nested_latent.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from firmware_py.errors import FirmwareError

BITS = (8, 4)


class RateError(FirmwareError, ValueError):
    """A payload that is no latent of the model at hand, or a rate that it was not trained for."""


class Rate(NamedTuple):
    """The first ``values`` of a latent, ``bits`` (8 or 4) each."""

    values: int
    bits: int

    @property
    def payload_bytes(self) -> int:
        return (self.values * self.bits + 7) // 8


@dataclass(frozen=True)
class Coding:
    """The payloads of a model whose latents have ``latent`` values; ``prefixes`` are its rates below the two that
    every latent has. Raises ``RateError``, also where two rates are of one length."""

    latent: int
    zero_point: int = 0
    prefixes: tuple[Rate, ...] = ()

    def __post_init__(self) -> None:
        lengths = [rate.payload_bytes for rate in self.rates]
        if len(set(lengths)) < len(lengths):
            raise RateError(f"prefixes: expected each rate to have a length of its own, got {lengths} bytes")
        for rate in self.prefixes:
            if rate.bits not in BITS or not 0 < rate.values < self.latent:
                raise RateError(
                    f"prefixes: expected 1 to {self.latent - 1} values of 8 or 4 bits, got {rate.values} of {rate.bits}"
                )

    @cached_property
    def rates(self) -> tuple[Rate, ...]:
        """All rates, the highest first."""
        whole = (Rate(self.latent, bits) for bits in BITS)
        return tuple(sorted((*whole, *self.prefixes), key=lambda rate: -rate.payload_bytes))

    def rate(self, payload_bytes: int) -> Rate:
        """What a payload of this length holds. Raises ``RateError``."""
        for rate in self.rates:
            if rate.payload_bytes == payload_bytes:
                return rate
        *most, last = (str(rate.payload_bytes) for rate in self.rates)
        raise RateError(f"expected a latent of {', '.join(most)} or {last} bytes, got {payload_bytes}")

    def is_latent(self, payload: bytes) -> bool:
        """Whether a payload may be a latent of this model."""
        return any(rate.payload_bytes == len(payload) for rate in self.rates)

    def unpack(self, payload: bytes) -> np.ndarray:
        """The latent as the centre reads it: int8 ``(latent,)``. Raises ``RateError``."""
        rate = self.rate(len(payload))
        sent = np.frombuffer(payload, np.uint8)
        if rate.bits == 4:
            halves = np.stack([sent >> 4, sent & 15], axis=1).ravel()[: rate.values]
            sent = (halves << 4 | 8).astype(np.uint8)
        latent = np.full(self.latent, self.zero_point, np.int8)
        latent[: rate.values] = sent.view(np.int8)
        return latent


def pack(latent: np.ndarray, rate: Rate) -> bytes:
    """int8 ``(latent,)`` -> the payload of a record at ``rate``."""
    sent = latent[: rate.values].astype(np.int8)
    if rate.bits == 8:
        return sent.tobytes()
    halves = (sent.view(np.uint8) >> 4).astype(np.uint8)
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return (halves[::2] << 4 | halves[1::2]).astype(np.uint8).tobytes()


def read_coding(described: dict[str, Any], latent: int, zero_point: int) -> Coding:
    """The ``Coding`` of a model from its manifest or its decoder's description; without ``prefixes``, it has none.

    Raises ``RateError``.
    """
    prefixes = described.get("prefixes", [])
    try:
        return Coding(latent, zero_point, tuple(Rate(*_whole_numbers(*pair)) for pair in prefixes))
    except TypeError:
        raise RateError(f"prefixes: expected pairs of values and bits, got {prefixes!r}") from None


def _whole_numbers(values: Any, bits: Any) -> tuple[int, int]:
    if type(values) is not int or type(bits) is not int:
        raise TypeError
    return values, bits
