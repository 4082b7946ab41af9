"""What a reader of a field format returns, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from physics.errors import PhysicsError

FOOT_M = 0.3048


class FieldFileError(PhysicsError, ValueError):
    """A field file is damaged, or does not hold what the survey asks for."""


@dataclass(frozen=True)
class ReadOptions:
    """Choices of the caller that a reader needs. ``interval_s`` replaces the interval of the headers."""

    interval_s: float | None = None


@dataclass(frozen=True)
class ShotTraces:
    """Traces with positions, whose time is counted from the shot. All arrays have one entry a trace.

    ``source`` and ``receiver (n, 2)`` are x and y in metres, or longitude and latitude in degrees where ``degrees``
    is set. ``kind`` is the trace identification of SEG-Y. ``start_s`` is the time of the first sample after the shot.
    ``read(i)`` returns the samples of trace ``i``.
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
    """Samples without a gap. ``start_ns`` counts from 1970 in UTC."""

    start_ns: int
    interval_s: float
    samples: np.ndarray

    @property
    def end_ns(self) -> int:
        """Time of the last sample."""
        return self.start_ns + round((len(self.samples) - 1) * self.interval_s * 1e9)


@dataclass(frozen=True)
class ChannelRecords:
    """Continuous records by SEED id, NETWORK.STATION.LOCATION.CHANNEL; segments in order of time."""

    channels: dict[str, list[Segment]]
    steps: tuple[str, ...] = ()


class FieldFormat(Protocol):
    """One field format. A new one is a module with a ``FORMAT`` and a line in ``registry.py``."""

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def matches(self, head: bytes, size: int) -> bool:
        """True if a file of ``size`` bytes that begins with ``head`` has this format."""
        ...

    def read(self, path: Path, options: ReadOptions) -> ShotTraces | ChannelRecords:
        """Read the headers, and what of the samples the format does not allow to read later.

        Raises ``FieldFileError``.
        """
        ...


def ranges(numbers: list[int]) -> str:
    """``[3, 5, 6, 7]`` as ``3, 5 to 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs)


def counted(number: int, noun: str) -> str:
    """``1 trace``, ``2 traces``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def named(noun: str, numbers: list[int]) -> str:
    """``receiver 3``, ``receivers 3, 5 to 7``."""
    return f"{noun}{'s' * (len(numbers) != 1)} {ranges(numbers)}"


def metres(value: float) -> str:
    """A position to the millimetre, without digits that say nothing."""
    return f"{round(float(value), 3) + 0.0:.15g}"
