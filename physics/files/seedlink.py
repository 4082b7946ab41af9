"""Cut gathers out of a live SeedLink stream as soon as all receivers have recorded an event.

Shot times come from a file that may grow (``physics.files.shots_file``). Gathers are written to a folder that devices
watch (``[source] kind = "folder"``). The packages needed here (extra ``geo``) therefore need not be installed on the
device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from physics.acquisition import Acquisition
from physics.files.atomic import atomic_write
from physics.files.field_files import FieldFileError, finish_gather, read_receivers
from physics.files.live_buffers import (
    FUTURE_S,
    HELD_S,
    RATE_TOLERANCE,
    Channel,
    Record,
    RecordError,
    common_rate,
    decode_record,
)
from physics.files.openfwi_files import create_array
from physics.files.seedlink_session import (
    SILENCE_S,
    ConnectionLostError,
    SeedLinkError,
    SeedLinkSession,
    split_name,
)
from physics.files.shots_file import ShotsFile
from physics.files.times import NS, format_time

# Seconds between attempts to reconnect.
AGAIN_S = 5.0
# Seconds of receiving data before events and the shots' file are checked.
POLL_S = 0.1
# Seconds of data requested before the first shot.
MARGIN_S = 1
# Events collected at the same time; later ones wait, so that memory stays bounded.
MAX_OPEN = 64
# A server without new data for this many times ``wait_s`` is taken to have no more.
IDLE_WAITS = 6
# File of events already written, one number per line.
DONE = ".followed"
# Receivers listed in one notice; the files of steps list all.
MAX_LISTED = 4
# Resolution of times in INFO: a microsecond.
INFO_RESOLUTION_NS = 10_000


@dataclass(frozen=True)
class Following:
    """Configuration of a live import.

    Args:
        server: Address of the server, see ``physics.files.seedlink_session.parse_address``.
        geometry: TOML file with ``receivers``, a SEED id for each.
        shots: File of the shot times.
        out: Folder for the gathers.
        acquisition: The survey.
        device: Write only this device's receivers; None writes the whole line.
        gain: Factor on the samples.
        wait_s: Time after which a missing receiver counts as silent. The line's data must be this much past the event's
            end, and no older data may have come for this long. A server that sends nothing at all is given up after six
            times this long.
    """

    server: str
    geometry: Path
    shots: Path
    out: Path
    acquisition: Acquisition
    device: int | None = None
    gain: float = 1.0
    wait_s: float = 10.0


def follow(
    following: Following,
    events: int,
    on_event: Callable[[str], None],
    on_notice: Callable[[str], None] = lambda said: None,
) -> int:
    """Write ``shot-EVENT.npy`` for each event in the shots' file.

    Events that an earlier call wrote are skipped. Events that it could not write are tried again.

    Args:
        following: Configuration.
        events: Stop after this many events; 0 never stops.
        on_event: Called with a line on each event.
        on_notice: Called with a line on each problem: a lost connection, a silent receiver, a bad line.

    Returns:
        The number of events written.

    Raises:
        FieldFileError: The geometry or the shots' file cannot be read.
        SeedLinkError: No server answers the first connection attempt.
    """
    survey = following.acquisition
    names = _receivers(following)
    (following.out / "steps").mkdir(parents=True, exist_ok=True)
    done = _read_done(following.out)
    shots = ShotsFile(following.shots, survey.n_sources, on_notice)
    shots.read()
    stream = _Stream(following, names, on_notice)
    incomplete: set[int] = set()
    dealt_with = written = 0
    try:
        while not events or dealt_with < events:
            stream.open_events({event: t for event, t in shots.complete.items() if event not in done})
            stream.take()
            for pending in stream.finished():
                said, is_written = _write(following, names, pending, on_notice)
                done.add(pending.event)
                if is_written:
                    with (following.out / DONE).open("a") as file:
                        file.write(f"{pending.event}\n")
                    written += 1
                on_event(said)
                dealt_with += 1
                if dealt_with == events:
                    break
                for event in sorted(set(shots.missing) - incomplete - done):
                    if event < pending.event:
                        incomplete.add(event)
                        lacking = ", ".join(map(str, shots.missing[event]))
                        on_notice(f"event {event}: not written; {shots.path} lacks its sources {lacking}")
            shots.read()
    finally:
        stream.close()
    return written


def _receivers(following: Following) -> list[str]:
    survey = following.acquisition
    names = read_receivers(following.geometry, survey)
    if following.device is not None:
        if not 0 <= following.device < survey.n_devices:
            raise FieldFileError(f"device: expected 0 to {survey.n_devices - 1}, got {following.device}")
        names = [names[i] for i in survey.device_receivers[following.device]]
    for name in names:
        try:
            split_name(name)
        except ValueError as error:
            raise FieldFileError(f"{following.geometry}: {error}") from None
    return names


@dataclass
class _Pending:
    """An event whose data are being collected."""

    event: int
    times_ns: tuple[int, ...]
    # Time of the last sample needed.
    until_ns: int
    # Receivers not cut yet, and those of them with new data for the event.
    lacking: set[int]
    touched: set[int]
    # Rate in Hz and ``(S, N)`` samples of each receiver, or the reason why it is silent.
    traces: dict[int, tuple[float, np.ndarray]] = field(default_factory=dict)
    silent: dict[int, str] = field(default_factory=dict)
    # Monotonic time at which data from before the event's end last arrived, seconds.
    old_data_at: float = field(default_factory=time.monotonic)


class _Stream:
    """Channels of a server, and the events cut from them."""

    def __init__(self, following: Following, names: list[str], notify: Callable[[str], None]) -> None:
        self._survey, self._wait_s, self._notify = following.acquisition, following.wait_s, notify
        self._session = SeedLinkSession(following.server, names, keepalive_s=max(following.wait_s, POLL_S))
        self._channels = [Channel(name) for name in names]
        self._index = {name: i for i, name in enumerate(names)}
        self._pending: dict[int, _Pending] = {}
        self._told: set[str] = set()
        # Data have been requested from this time on.
        self._since_ns: int | None = None
        self._lost_at: float | None = None
        self._try_at = 0.0
        self._start_of_connection()

    def _start_of_connection(self) -> None:
        self._newest_before = {channel.name: channel.newest_ns for channel in self._channels}
        self._newest_since: dict[str, int] = {}

    def open_events(self, complete: dict[int, tuple[int, ...]]) -> None:
        """Start collecting data for new events, earliest first; connect or request older data where needed."""
        free = MAX_OPEN - len(self._pending)
        waiting = sorted(set(complete) - set(self._pending), key=lambda event: min(complete[event]))[
            : max(free, 0)
        ]
        duration_ns = round(self._survey.n_time * self._survey.dt_s * NS)
        receivers = range(len(self._channels))
        for event in waiting:
            times = complete[event]
            self._pending[event] = _Pending(
                event, times, max(times) + duration_ns, set(receivers), set(receivers)
            )
        if self._since_ns is None:
            self._connect(self._resume_ns())
        elif waiting and self._session.is_open:
            needed = min(min(complete[event]) for event in waiting) - MARGIN_S * NS
            if needed < self._held_from_ns():
                self._connect(min(needed, self._resume_ns()))

    def take(self) -> None:
        """Receive available data, waiting briefly; reconnect if the connection is lost."""
        if not self._session.is_open:
            if time.monotonic() >= self._try_at:
                self._connect(self._resume_ns())
            else:
                time.sleep(POLL_S)
            return
        until = time.monotonic() + POLL_S
        try:
            while (left_s := until - time.monotonic()) > 0:
                if not all(self._add(payload) for payload in self._session.receive(left_s)):
                    return
        except ConnectionLostError as error:
            self._session.close()
            self._lost(str(error))

    def finished(self) -> list[_Pending]:
        """Return events that are complete or for which no more data are expected; each once."""
        finished = []
        for pending in sorted(self._pending.values(), key=lambda pending: pending.until_ns):
            for receiver in sorted(pending.touched):
                newest_ns = self._channels[receiver].newest_ns
                if newest_ns is not None and newest_ns >= pending.until_ns:
                    pending.touched.discard(receiver)
                    self._cut(pending, receiver)
            if pending.lacking and self._is_over(pending):
                for receiver in sorted(pending.lacking):
                    self._cut(pending, receiver)
                pending.lacking.clear()
            if not pending.lacking:
                finished.append(pending)
                del self._pending[pending.event]
        if finished:
            for channel in self._channels:
                channel.forget(self._is_needed)
        return finished

    def close(self) -> None:
        self._session.close()

    def _cut(self, pending: _Pending, receiver: int) -> None:
        duration_s = self._survey.n_time * self._survey.dt_s
        channel = self._channels[receiver]
        try:
            pending.traces[receiver] = channel.cut(pending.times_ns, duration_s)
        except FieldFileError as error:
            pending.silent[receiver] = self._reason(channel, str(error))
        else:
            pending.silent.pop(receiver, None)
            pending.lacking.discard(receiver)

    def _reason(self, channel: Channel, said: str) -> str:
        spans = self._session.spans
        if spans is not None and channel.newest_ns is None and channel.name not in spans:
            return f"{channel.name} is not on the server"
        return said

    def _is_over(self, pending: _Pending) -> bool:
        """Return True if no more data are expected from incomplete receivers.

        The line's data must be past the event, and no data from before its end may still be arriving. A server that
        responds but sends nothing has no more data.
        """
        clock_ns = self._clock_ns()
        if not self._session.is_open or clock_ns is None or clock_ns < pending.until_ns:
            return False
        if self._session.idle_s() > IDLE_WAITS * self._wait_s:
            return True
        quiet_s = time.monotonic() - pending.old_data_at
        if quiet_s < self._wait_s or clock_ns < pending.until_ns + round(self._wait_s * NS):
            return False
        return quiet_s > SILENCE_S or not any(map(self._is_outstanding, pending.lacking))

    def _is_outstanding(self, receiver: int) -> bool:
        """Return True if the server held data of a receiver at connection time that have not arrived yet."""
        name = self._channels[receiver].name
        span = (self._session.spans or {}).get(name)
        if span is None or self._since_ns is None or span.end_ns < self._since_ns:
            return False
        return self._newest_since.get(name, 0) < span.end_ns - INFO_RESOLUTION_NS

    def _add(self, payload: bytes) -> bool:
        """Add one record. Return False if the stream had to be restarted."""
        try:
            record = decode_record(payload)
        except RecordError as error:
            self._tell_once(f"{error.name or self._session.server}: {error}; it is left out")
            return True
        receiver = self._index.get(record.name)
        if receiver is None:
            return True
        if record.end_ns > time.time_ns() + FUTURE_S * NS:
            self._tell_once(
                f"{record.name}: its clock is wrong, it sends data of {format_time(record.end_ns)}"
            )
            return True
        expected_ns = self._expected_ns(record)
        if expected_ns is not None:
            self._notify(
                f"{record.name}: the stream goes on at {format_time(record.start_ns)}, expected "
                f"{format_time(expected_ns)}; asking from the start of the server's buffer"
            )
            self._connect(0)
            return False
        self._newest_since[record.name] = max(record.end_ns, self._newest_since.get(record.name, 0))
        self._channels[receiver].add(record, self._is_needed)
        now = time.monotonic()
        for pending in self._pending.values():
            if record.start_ns <= pending.until_ns:
                pending.old_data_at = now
                if receiver in pending.lacking:
                    pending.touched.add(receiver)
        return True

    def _expected_ns(self, record: Record) -> int | None:
        """Return the expected start of a channel's first record of this connection; None if the record is in place."""
        if record.name in self._newest_since or not self._since_ns:
            return None
        span = (self._session.spans or {}).get(record.name)
        if span is not None and self._since_ns <= span.end_ns < record.start_ns:
            # None of the server's older data arrived: it ignores the requested time.
            return max(self._since_ns, span.begin_ns)
        before = self._newest_before.get(record.name)
        if before is None or before < self._since_ns or record.start_ns <= before + 1.5 * NS / record.rate_hz:
            return None
        return before if span is None or span.begin_ns <= before else None

    def _is_needed(self, start_ns: int, end_ns: int) -> bool:
        return any(
            start_ns <= pending.until_ns and end_ns >= min(pending.times_ns) - MARGIN_S * NS
            for pending in self._pending.values()
        )

    def _clock_ns(self) -> int | None:
        """Return the time of the line's newest sample."""
        return max((c.newest_ns for c in self._channels if c.newest_ns is not None), default=None)

    def _held_from_ns(self) -> int:
        """Return the start of the data that are buffered or have been requested."""
        assert self._since_ns is not None
        clock_ns = self._clock_ns()
        return self._since_ns if clock_ns is None else max(self._since_ns, clock_ns - HELD_S * NS)

    def _resume_ns(self) -> int:
        """Return the time to resume from: covers open events, and continues the buffered data of each channel."""
        clock_ns = self._clock_ns()
        if clock_ns is None:
            needed = [time.time_ns() - HELD_S * NS]
        else:
            newest = (channel.newest_ns for channel in self._channels)
            held_ns = clock_ns - HELD_S * NS
            needed = [held_ns if ns is None else max(ns, held_ns) for ns in newest]
        needed += [min(pending.times_ns) for pending in self._pending.values()]
        return min(needed) - MARGIN_S * NS

    def _connect(self, since_ns: int) -> None:
        is_first = self._since_ns is None
        try:
            self._session.open(since_ns)
        except SeedLinkError as error:
            if is_first:
                raise
            self._lost(str(error))
            return
        self._since_ns = since_ns
        self._start_of_connection()
        for pending in self._pending.values():
            pending.old_data_at = time.monotonic()
        if self._lost_at is not None:
            self._notify(f"{self._session.server}: connected again")
        self._lost_at = None
        self._tell_what_is_missing()

    def _lost(self, said: str) -> None:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._notify(
                f"{self._session.server}: connection lost ({said}); trying again every {AGAIN_S:g} s"
            )
        self._try_at = time.monotonic() + AGAIN_S

    def _tell_what_is_missing(self) -> None:
        session = self._session
        for station in session.refused:
            self._tell_once(f"{session.server}: refuses the station {station}; its receivers are silent")
        if not session.takes_time:
            self._tell_once(f"{session.server}: does not send past data; events before now are lost")
        if session.spans is None:
            return
        unknown = [channel.name for channel in self._channels if channel.name not in session.spans]
        if unknown:
            near = get_close_matches(unknown[0], session.spans, 1, 0.0)
            hint = f"; nearest to {unknown[0]} is {near[0]}" if near else "; it has no data yet"
            self._tell_once(f"{session.server}: has no {_listed(unknown)}{hint}")

    def _tell_once(self, said: str) -> None:
        if said not in self._told:
            self._told.add(said)
            self._notify(said)


def _write(
    following: Following, names: list[str], pending: _Pending, notify: Callable[[str], None]
) -> tuple[str, bool]:
    """Write an event's gather and steps; return a line on it, and whether there is a gather."""
    event, survey = pending.event, following.acquisition
    silent = dict(pending.silent)
    traces = dict(pending.traces)
    if traces:
        rate_hz = common_rate([rate for rate, _ in traces.values()])
        for receiver, (rate, _) in pending.traces.items():
            if not np.isclose(rate, rate_hz, rtol=RATE_TOLERANCE):
                silent[receiver] = f"{names[receiver]} is sampled at {rate:g} Hz, the line at {rate_hz:g} Hz"
                del traces[receiver]
    reasons = [silent[receiver] for receiver in sorted(silent)]
    steps = [
        f"{len(traces)} of {len(names)} receivers of {following.server}, cut at "
        f"{', '.join(map(format_time, pending.times_ns))}",
        *reasons,
    ]
    try:
        if not traces:
            raise FieldFileError(f"event {event}: no receiver has its samples ({reasons[0]})")
        length = next(iter(traces.values()))[1].shape[1]
        gather = np.zeros((survey.n_sources, length, len(names)), np.float32)
        for receiver, (_, samples) in traces.items():
            gather[:, :, receiver] = samples
        read = finish_gather(f"event {event}", gather, 1.0 / rate_hz, survey, following.gain, steps)
    except FieldFileError as error:
        reason = str(error).removeprefix(f"event {event}: ")
        _write_steps(following, event, {"not_written": reason, "steps": steps})
        return f"event {event}: not written; {reason}", False
    if reasons:
        notify(f"event {event}: silent: {_listed(reasons, '; ')}")
    _write_steps(following, event, {"steps": read.steps})
    with create_array(following.out / f"shot-{event:06d}.npy", read.gather.shape) as array:
        array[:] = read.gather
    told = f", {len(silent)} silent" if silent else ""
    return f"event {event}: {len(names)} receivers{told}, peak {float(abs(read.gather).max()):.3g}", True


def _listed(texts: list[str], separator: str = ", ") -> str:
    """Join the first texts in one line, with the number of the rest."""
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return separator.join(texts[:MAX_LISTED]) + more


def _write_steps(following: Following, event: int, content: dict) -> None:
    text = json.dumps({"source": following.server, **content}, indent=2) + "\n"
    with atomic_write(following.out / "steps" / f"shot-{event:06d}.json") as temporary:
        temporary.write_text(text)


def _read_done(out: Path) -> set[int]:
    """Return the events already written. A last line that a power loss cut is removed: 1234 may read as 12."""
    path = out / DONE
    if not path.exists():
        return set()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with atomic_write(path) as temporary:
            temporary.write_text(whole)
    return {int(line) for line in whole.split() if line.isdigit()}
