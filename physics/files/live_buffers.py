"""Buffer the last minute of each channel, and older data that open events need.

Each record is decoded once and stored as an array. The cost of a new record does not depend on the amount stored.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from physics.errors import PhysicsError
from physics.files.field_files import FieldFileError
from physics.files.times import NS, format_time

# Seconds of data kept per channel before its newest sample, beyond the needs of open events.
HELD_S = 60
# Records that end more than this many seconds after the computer's time come from a wrong clock.
FUTURE_S = 86_400
# Relative tolerance for equal sample rates; the clocks of digitizers differ by less.
RATE_TOLERANCE = 1e-5


class RecordError(PhysicsError, ValueError):
    """A record cannot be used. ``name`` is its channel; None if that cannot be read either."""

    def __init__(self, name: str | None, said: str) -> None:
        super().__init__(said)
        self.name = name


@dataclass(frozen=True)
class Record:
    """Contiguous samples of one channel: ``samples (N,)`` float32 from ``start_ns`` on, at ``rate_hz``."""

    name: str
    start_ns: int
    rate_hz: float
    samples: np.ndarray

    @cached_property
    def end_ns(self) -> int:
        """Time of the last sample."""
        return self.start_ns + round((len(self.samples) - 1) * NS / self.rate_hz)


def decode_record(payload: bytes) -> Record:
    """Decode one miniSEED record, version 2 or 3. Raises ``RecordError``."""
    from pymseed import MiniSEEDError, MS3Record

    name = None
    try:
        header = MS3Record.parse(payload)
        name = _seed_id(header.sourceid)
        if header.samprate <= 0 or not header.samplecnt:
            raise RecordError(name, "a record has no sample rate or no samples")
        decoded = MS3Record.parse(payload, unpack_data=True)
        samples = decoded.np_datasamples
    except (MiniSEEDError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(name, f"a record cannot be decoded ({error})") from None
    if samples.dtype.kind not in "if":
        raise RecordError(name, "a record holds text, expected samples")
    return Record(name, decoded.starttime, decoded.samprate, np.array(samples, np.float32))


def _seed_id(source: str) -> str:
    """``FDSN:NET_STA_LOC_B_S_SS`` -> ``NET.STA.LOC.BSS``."""
    parts = source.removeprefix("FDSN:").split("_")
    if len(parts) != 6:
        raise ValueError(f"expected a channel of a station, got {source}")
    return ".".join((*parts[:3], "".join(parts[3:])))


class _Timeline:
    """Records ordered by start time; a record with the same start replaces the previous one."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}
        self._starts: list[int] = []
        self._longest_ns = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, record: Record) -> None:
        if record.start_ns not in self._records:
            insort(self._starts, record.start_ns)
        self._records[record.start_ns] = record
        self._longest_ns = max(self._longest_ns, record.end_ns - record.start_ns)

    def first(self) -> Record:
        return self._records[self._starts[0]]

    def pop_first(self) -> Record:
        return self._records.pop(self._starts.pop(0))

    def near(self, start_ns: int, end_ns: int) -> list[Record]:
        """Return the records from ``start_ns`` to ``end_ns`` and their neighbours."""
        first = bisect_left(self._starts, start_ns - self._longest_ns - NS)
        last = bisect_left(self._starts, end_ns + NS)
        return [self._records[start] for start in self._starts[first:last]]


@dataclass
class Channel:
    """Records of one channel: the latest, and older ones that open events need."""

    name: str
    newest_ns: int | None = None
    _recent: _Timeline = field(default_factory=_Timeline)
    _older: _Timeline = field(default_factory=_Timeline)

    def add(self, record: Record, is_needed: Callable[[int, int], bool]) -> None:
        """Add a record; ``is_needed(start_ns, end_ns)`` tells whether an open event needs an older one."""
        self.newest_ns = max(record.end_ns, self.newest_ns or record.end_ns)
        limit = self.newest_ns - HELD_S * NS
        if record.end_ns >= limit:
            self._recent.add(record)
        elif is_needed(record.start_ns, record.end_ns):
            self._older.add(record)
        while len(self._recent) and self._recent.first().end_ns < limit:
            oldest = self._recent.pop_first()
            if is_needed(oldest.start_ns, oldest.end_ns):
                self._older.add(oldest)

    def forget(self, is_needed: Callable[[int, int], bool]) -> None:
        """Drop older records that no open event needs."""
        kept = _Timeline()
        while len(self._older):
            record = self._older.pop_first()
            if is_needed(record.start_ns, record.end_ns):
                kept.add(record)
        self._older = kept

    def cut(self, shots_ns: tuple[int, ...], duration_s: float) -> tuple[float, np.ndarray]:
        """Cut the samples from each shot on.

        Args:
            shots_ns: Time of each of the S shots.
            duration_s: Length of each record.

        Returns:
            The sample rate in Hz, and ``(S, N)`` float32, linearly interpolated between samples.

        Raises:
            FieldFileError: Samples are missing or unusable.
        """
        pieces = [self._near(shot, shot + round(duration_s * NS)) for shot in shots_ns]
        if not all(pieces):
            shot = next(shot for shot, found in zip(shots_ns, pieces, strict=True) if not found)
            raise FieldFileError(f"{self.name} has nothing from {format_time(shot)} on")
        rates = [record.rate_hz for found in pieces for record in found]
        rate_hz = max(set(rates), key=rates.count)
        if not np.allclose(rates, rate_hz, rtol=RATE_TOLERANCE):
            told = ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
            raise FieldFileError(f"{self.name} changes its sample rate ({told} Hz)")
        length = int(np.ceil(duration_s * rate_hz - 1e-9))
        traces = [
            self._trace(shot, found, rate_hz, length) for shot, found in zip(shots_ns, pieces, strict=True)
        ]
        return rate_hz, np.stack(traces)

    def _near(self, start_ns: int, end_ns: int) -> list[Record]:
        held = (*self._recent.near(start_ns, end_ns), *self._older.near(start_ns, end_ns))
        # Linear interpolation needs a sample on each side.
        found = [
            record
            for record in held
            if record.start_ns - NS / record.rate_hz < end_ns
            and record.end_ns + NS / record.rate_hz > start_ns
        ]
        return sorted(found, key=lambda record: record.start_ns)

    def _trace(self, shot_ns: int, pieces: list[Record], rate_hz: float, length: int) -> np.ndarray:
        first_ns = pieces[0].start_ns
        offset = (shot_ns - first_ns) * rate_hz / NS
        if offset < -1e-3:
            raise FieldFileError(
                f"{self.name} begins after {format_time(shot_ns)}, at {format_time(first_ns)}"
            )
        low = int(np.floor(offset + 1e-3))
        # One more sample than the trace, unless the shot coincides with a sample.
        count = length + (abs(offset - low) > 1e-3)
        values, filled = np.zeros(count), np.zeros(count, bool)
        for record in pieces:
            at = round((record.start_ns - first_ns) * rate_hz / NS) - low
            begin, end = max(at, 0), min(at + len(record.samples), count)
            if begin < end:
                values[begin:end] = record.samples[begin - at : end - at]
                filled[begin:end] = True
        if not filled.all():
            lost = int(count - filled.sum())
            raise FieldFileError(
                f"{self.name} has a gap after {format_time(shot_ns)}, {lost} of {count} samples"
            )
        if not np.isfinite(values).all():
            raise FieldFileError(f"{self.name} holds NaN or infinite samples after {format_time(shot_ns)}")
        places = offset - low + np.arange(length)
        return np.asarray(np.interp(places, np.arange(count), values), np.float32)


def common_rate(rates_hz: list[float]) -> float:
    """Return the sample rate that most receivers have, within the tolerance."""
    return max(rates_hz, key=lambda rate: int(np.isclose(rates_hz, rate, rtol=RATE_TOLERANCE).sum()))
