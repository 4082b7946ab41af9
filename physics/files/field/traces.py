"""Data types that the readers of all field formats return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from physics.errors import PhysicsError

FOOT_M = 0.3048


class FieldFileError(PhysicsError, ValueError):
    """A field file is damaged, or does not match the survey."""


@dataclass(frozen=True)
class ReadOptions:
    """User options for the readers. ``interval_s`` replaces the interval of the headers."""

    interval_s: float | None = None


@dataclass(frozen=True)
class ShotTraces:
    """Traces with positions and times relative to the shot. All arrays have one entry per trace.

    Attributes:
        source, receiver: ``(n, 2)``, x and y in metres, or longitude and latitude in degrees if ``degrees`` is set.
        kind: Trace identification code of SEG-Y.
        start_s: Time of the first sample after the shot.
        read: ``read(i)`` returns the samples of trace ``i``.
    """

    names: list[str]
    kind: np.ndarray
    source: np.ndarray
    receiver: np.ndarray
    degrees: bool
    interval_s: np.ndarray
    start_s: np.ndarray
    read: Callable[[int], np.ndarray]
    steps: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Segment:
    """Contiguous samples. ``start_ns`` counts from 1970 in UTC."""

    start_ns: int
    interval_s: float
    samples: np.ndarray

    @property
    def end_ns(self) -> int:
        """Time of the last sample."""
        return self.start_ns + round((len(self.samples) - 1) * self.interval_s * 1e9)


@dataclass(frozen=True)
class ChannelRecords:
    """Continuous records by SEED id (NETWORK.STATION.LOCATION.CHANNEL); segments in order of time."""

    channels: dict[str, list[Segment]]
    steps: tuple[str, ...] = ()


class FieldFormat(Protocol):
    """Interface of a field format. To add one, write a module with a ``FORMAT`` and add a line to ``registry.py``."""

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def matches(self, head: bytes, size: int) -> bool:
        """Return True if a file of ``size`` bytes that begins with ``head`` has this format."""
        ...

    def read(self, path: Path, options: ReadOptions) -> ShotTraces | ChannelRecords:
        """Read the headers, and the samples if they cannot be read later. Raises ``FieldFileError``."""
        ...


def ranges(numbers: list[int]) -> str:
    """Format ``[3, 5, 6, 7]`` as ``3, 5 to 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs)


def counted(number: int, noun: str) -> str:
    """Format a count: ``1 trace``, ``2 traces``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def named(noun: str, numbers: list[int]) -> str:
    """Format a name with its numbers: ``receiver 3``, ``receivers 3, 5 to 7``."""
    return f"{noun}{'s' * (len(numbers) != 1)} {ranges(numbers)}"


def metres(value: float) -> str:
    """Format a position to the millimetre, without trailing zeros."""
    return f"{round(float(value), 3) + 0.0:.15g}"
