"""Encode a latent at a rate: all or the first of its values, each in 8 bits or its upper 4.

The payload's length alone identifies the rate. Every latent of n values may be sent as n bytes (8 bits a value) or n/2
bytes (4 bits). Shorter rates are listed in the manifest's ``prefixes``.

At 4 bits, two values share a byte, the first in the upper half. The centre decodes each as the middle of its 16
possible int8 values. Values that were not sent are decoded as the zero point; models with prefixes are trained for that
(``models/networks/nested_latent.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from firmware_py.errors import FirmwareError

BITS = (8, 4)


class RateError(FirmwareError, ValueError):
    """The payload is not a latent of this model, or the model was not trained for the rate."""


class Rate(NamedTuple):
    """The first ``values`` of a latent, ``bits`` (8 or 4) each."""

    values: int
    bits: int

    @property
    def payload_bytes(self) -> int:
        return (self.values * self.bits + 7) // 8


@dataclass(frozen=True)
class Coding:
    """Payload formats of a model with ``latent`` values; ``prefixes`` are its shorter rates.

    Raises:
        RateError: A prefix is not valid, or two rates have the same length.
    """

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
        """Return all rates, highest first."""
        whole = (Rate(self.latent, bits) for bits in BITS)
        return tuple(sorted((*whole, *self.prefixes), key=lambda rate: -rate.payload_bytes))

    @cached_property
    def _by_length(self) -> dict[int, Rate]:
        return {rate.payload_bytes: rate for rate in self.rates}

    def rate(self, payload_bytes: int) -> Rate:
        """Return the rate of a payload of this length.

        Raises:
            RateError: No rate has this length.
        """
        if rate := self._by_length.get(payload_bytes):
            return rate
        *most, last = (str(rate.payload_bytes) for rate in self.rates)
        raise RateError(f"expected a latent of {', '.join(most)} or {last} bytes, got {payload_bytes}")

    def is_latent(self, payload: bytes) -> bool:
        """Return True if the payload may be a latent of this model."""
        return len(payload) in self._by_length

    def unpack(self, payload: bytes) -> np.ndarray:
        """Decode a payload to int8 ``(latent,)``, as the centre uses it.

        Raises:
            RateError: The payload has no valid length.
        """
        rate = self.rate(len(payload))
        sent = np.frombuffer(payload, np.uint8)
        if rate.bits == 4:
            halves = np.stack([sent >> 4, sent & 15], axis=1).ravel()[: rate.values]
            sent = (halves << 4 | 8).astype(np.uint8)
        latent = np.full(self.latent, self.zero_point, np.int8)
        latent[: rate.values] = sent.view(np.int8)
        return latent


def pack(latent: np.ndarray, rate: Rate) -> bytes:
    """Pack int8 ``(latent,)`` into a record's payload at ``rate``."""
    sent = latent[: rate.values].astype(np.int8)
    if rate.bits == 8:
        return sent.tobytes()
    halves = (sent.view(np.uint8) >> 4).astype(np.uint8)
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return (halves[::2] << 4 | halves[1::2]).astype(np.uint8).tobytes()


def read_coding(described: dict[str, Any], latent: int, zero_point: int) -> Coding:
    """Read a model's ``Coding`` from its manifest or its decoder's description; ``prefixes`` may be absent.

    Raises:
        RateError: The entries are not valid.
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
