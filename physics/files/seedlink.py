"""Gathers out of a live SeedLink stream: what each receiver recorded from each shot on, as soon as it is there.

The shots' times come in a file that may grow meanwhile: a line ``event,source,time`` for each, time in ISO 8601.
Gathers are written into a folder as devices watch one (``[source] kind = "folder"``), so that ObsPy, which
speaks SeedLink here (extra ``geo``), need not be where the device is.
"""

from __future__ import annotations

import io
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from physics.acquisition import Acquisition
from physics.files.field_files import (
    FieldFileError,
    cut_window,
    finish_gather,
    read_receivers,
    window_samples,
)
from physics.files.openfwi_files import create_array

# A server that is silent for so long is connected to again, so long after.
SILENCE_S, AGAIN_S = 60, 5
POLL_S = 0.2
# Of the stream before the oldest shot that waits, or before now.
KEPT_S = 600.0
DONE = ".followed"


class SeedLinkError(RuntimeError):
    """No SeedLink server answers, or it does not have what is asked for."""


@dataclass(frozen=True)
class Following:
    """What is followed. ``device`` None is the whole line; else its own receivers are asked for and written alone.

    Receivers that have not sent all of an event's samples ``wait_s`` after the first one that did count as silent.
    """

    server: str
    geometry: Path
    shots: Path
    out: Path
    acquisition: Acquisition
    device: int | None = None
    gain: float = 1.0
    wait_s: float = 10.0


def follow(following: Following, events: int, on_event: Callable[[str], None]) -> int:
    """Write ``shot-EVENT.npy`` for each event that the shots' file names, until there are ``events`` (0: for ever).

    Returns how many were written; ``on_event`` hears of each. Events that were written by an earlier call are left.
    Raises ``FieldFileError`` for files that are none, ``SeedLinkError`` where no server answers at first.
    """
    survey = following.acquisition
    names = read_receivers(following.geometry, survey)
    if following.device is not None:
        if not 0 <= following.device < survey.n_devices:
            raise FieldFileError(f"device: expected 0 to {survey.n_devices - 1}, got {following.device}")
        names = [names[i] for i in survey.device_receivers[following.device]]
    (following.out / "steps").mkdir(parents=True, exist_ok=True)
    done = _read_done(following.out)
    waiting = _read_shots(following.shots, survey.n_sources, done)
    stream = _Stream(following.server, names, min((min(times) for times in waiting.values()), default=None))
    cut = _Cutter(following, names, stream)
    written = 0
    try:
        while not events or written < events:
            stream.take()
            waiting = _read_shots(following.shots, survey.n_sources, done)
            for event, times in sorted(waiting.items()):
                if not cut.is_ready(event, times):
                    continue
                said = cut.write(event, times)
                done.add(event)
                with (following.out / DONE).open("a") as file:
                    file.write(f"{event}\n")
                on_event(said)
                written += 1
                if written == events:
                    break
            stream.forget(min((min(times) for times in waiting.values()), default=None))
    finally:
        stream.close()
    return written


@dataclass
class _Cutter:
    """Events out of the stream."""

    following: Following
    names: list[str]
    stream: _Stream
    first_whole_s: dict[int, float] = field(default_factory=dict)

    def is_ready(self, event: int, times: list[Any]) -> bool:
        """Whether every receiver has sent all of it, or others have for ``wait_s``."""
        survey = self.following.acquisition
        until = max(times) + (survey.n_time + 1) * survey.dt_s
        there = [self.stream.reaches(name, until) for name in self.names]
        if not any(there):
            return False
        since_s = self.first_whole_s.setdefault(event, time.monotonic())
        return all(there) or time.monotonic() - since_s > self.following.wait_s

    def write(self, event: int, times: list[Any]) -> str:
        """The event's file and its steps; returns a line on it."""
        following, survey = self.following, self.following.acquisition
        dt_s = self.stream.interval_s()
        traces = np.zeros((survey.n_sources, window_samples(survey, dt_s), len(self.names)), np.float32)
        lost = []
        for receiver, name in enumerate(self.names):
            try:
                for source, shot in enumerate(times):
                    traces[source, :, receiver] = self.stream.window(name, shot, traces.shape[1])
            except FieldFileError as error:
                traces[:, :, receiver] = 0.0
                lost.append(str(error))
        self.first_whole_s.pop(event, None)
        shots = ", ".join(str(shot) for shot in times)
        steps = [
            f"{len(self.names) - len(lost)} of {len(self.names)} receivers of {following.server}, cut at {shots}"
        ]
        try:
            read = finish_gather(f"event {event}", traces, dt_s, survey, following.gain, [*steps, *lost])
        except FieldFileError as error:
            return f"event {event}: not written; {error}"
        (following.out / "steps" / f"shot-{event:06d}.json").write_text(
            json.dumps({"source": following.server, "steps": read.steps}, indent=2) + "\n"
        )
        with create_array(following.out / f"shot-{event:06d}.npy", read.gather.shape) as array:
            array[:] = read.gather
        silent = f", {len(lost)} silent" if lost else ""
        return f"event {event}: {len(self.names)} receivers{silent}, peak {float(abs(read.gather).max()):.3g}"


class _Stream:
    """The last minutes of some channels of a server, received on a thread."""

    def __init__(self, server: str, names: list[str], since: Any) -> None:
        from obspy.clients.seedlink.client.seedlinkconnection import SeedLinkConnection

        # It reports what it does; what matters is reported by the caller.
        logging.getLogger("obspy.clients.seedlink").setLevel(logging.CRITICAL)
        self._server = server
        self._pieces: dict[str, list[Any]] = {name: [] for name in names}
        self._came: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._closing = threading.Event()
        # One call that brings nothing for so long ends the connection; the next one goes on from the last record.
        self._connection = SeedLinkConnection(timeout=SILENCE_S)
        self._connection.set_sl_address(server)
        if since is not None:
            self._connection.begin_time = since - 1.0
        for name in names:
            network, station, location, channel = _split(name)
            self._connection.add_stream(network, station, f"{location}{channel}", -1, None)
        threading.Thread(target=self._receive, name=f"SeedLink {server}", daemon=True).start()

    def take(self) -> None:
        """Take in what has come, waiting a little for something. Raises ``SeedLinkError``."""
        import obspy

        try:
            came = [self._came.get(timeout=POLL_S)]
            while not self._came.empty():
                came.append(self._came.get())
        except queue.Empty:
            return
        for record in came:
            if isinstance(record, Exception):
                raise SeedLinkError(
                    f"{self._server}: {record}; expected a SeedLink server, HOST:PORT"
                ) from None
            for trace in obspy.read(io.BytesIO(record), format="MSEED"):
                if trace.id in self._pieces:
                    self._pieces[trace.id].append(trace)

    def reaches(self, name: str, until: Any) -> bool:
        return any(trace.stats.endtime >= until for trace in self._pieces[name])

    def interval_s(self) -> float:
        """The one sample interval of all channels. Raises ``SeedLinkError``."""
        found = {trace.stats.delta for pieces in self._pieces.values() for trace in pieces}
        if len(found) != 1:
            raise SeedLinkError(f"{self._server}: expected one sample interval, got {sorted(found)} s")
        return found.pop()

    def window(self, name: str, shot: Any, length: int) -> np.ndarray:
        """``length`` samples from a shot on. Raises ``FieldFileError``."""
        import obspy

        dt_s = self.interval_s()
        until = shot + length * dt_s
        near = [
            trace.copy()
            for trace in self._pieces[name]
            if trace.stats.endtime >= shot - dt_s and trace.stats.starttime <= until + dt_s
        ]
        if not near:
            raise FieldFileError(f"{name} has nothing from {shot} on")
        (merged,) = obspy.Stream(near).merge()
        first = (shot - merged.stats.starttime) / dt_s
        return cut_window(self._server, name, str(shot), merged.data, first, length)

    def forget(self, oldest: Any) -> None:
        """Drop what no event needs that waits from ``oldest`` on, or will, None when none does."""
        import obspy

        before = obspy.UTCDateTime() if oldest is None else oldest
        for name, pieces in self._pieces.items():
            newest = max((trace.stats.endtime for trace in pieces), default=before)
            limit = min(before, newest) - KEPT_S
            self._pieces[name] = [trace for trace in pieces if trace.stats.endtime >= limit]

    def close(self) -> None:
        self._closing.set()
        self._connection.terminate()

    def _receive(self) -> None:
        from obspy.clients.seedlink.seedlinkexception import SeedLinkException
        from obspy.clients.seedlink.slpacket import SLPacket

        connected = False
        while not self._closing.is_set():
            try:
                packet = self._connection.collect()
                connected = True
                if isinstance(packet, SLPacket):
                    self._came.put(bytes(packet.msrecord))
                    continue
            except (SeedLinkException, OSError) as error:
                if not connected:
                    self._came.put(error)
                    return
            self._closing.wait(AGAIN_S)


def _split(name: str) -> list[str]:
    parts = name.split(".")
    if len(parts) != 4 or not all((parts[0], parts[1], parts[3])):
        raise FieldFileError(f"receiver {name!r}: expected a SEED id, NETWORK.STATION.LOCATION.CHANNEL")
    return parts


def _read_done(out: Path) -> set[int]:
    path = out / DONE
    return {int(line) for line in path.read_text().split()} if path.exists() else set()


def _read_shots(path: Path, n_sources: int, done: set[int]) -> dict[int, list[Any]]:
    """Times of all shots of each event that has them all and is not done."""
    import obspy

    events: dict[int, dict[int, Any]] = {}
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise FieldFileError(f"{path}: cannot be read ({error}); expected lines event,source,time") from None
    for number, line in enumerate(lines, start=1):
        # A line that is being written has no end yet.
        if not line.strip() or line.startswith(("#", "event")) or not line.endswith("\n"):
            continue
        try:
            event, source, shot = (part.strip() for part in line.split(","))
            if int(event) not in done:
                events.setdefault(int(event), {})[int(source)] = obspy.UTCDateTime(shot)
        except (TypeError, ValueError) as error:
            raise FieldFileError(
                f"{path}: line {number}: expected event,source,time, got {line.strip()!r}"
            ) from error
    return {
        event: [times[source] for source in range(n_sources)]
        for event, times in events.items()
        if set(times) >= set(range(n_sources))
    }
