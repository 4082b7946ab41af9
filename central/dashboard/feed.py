"""Push changes to every connected browser as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from central.dashboard.archive import Archive, Section, detail, to_json
from central.dashboard.totals import Totals
from central.fleet.device_views import DeviceView
from central.recordings.gathers import has_recording
from central.storage.database import StoreError
from central.updates.rollout_store import RolloutStore, StoredRollout
from firmware_py.protocol.printable import printable
from firmware_py.runtime.log import Log, now_us

LOOK_S = 0.25
SLOWLY_S = 1.0
# Keep-alive interval, seconds; a browser reports a lost centre after a few missed ones.
ALIVE_S = 2.0
MAX_LISTENERS = 32


class Listener:
    """One browser; it gets the newest message of each kind, however slowly it reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fresh = asyncio.Event()
        self._pending: dict[str, str] = {}

    def put(self, kind: str, text: str) -> None:
        """Queue a message; thread-safe."""
        # The loop is closed while the page shuts down.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, kind, text)

    def _put(self, kind: str, text: str) -> None:
        self._pending[kind] = text
        self._fresh.set()

    async def take(self) -> dict[str, str]:
        """Return new messages by kind; empty if ``ALIVE_S`` passed without any."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._fresh.wait(), ALIVE_S)
        self._fresh.clear()
        taken, self._pending = self._pending, {}
        return taken


class Feed:
    """Watch the store on a thread of its own, ``watch``, and send changes to every listener.

    Kinds: ``totals``; ``section`` (last decoded map, null before the first); ``checked`` (id and time of the last map
    checked
    by forward modelling, null before the first); ``devices``; ``rollout``; ``problem`` (why the store cannot be read,
    null
    if it can); ``alive``.
    """

    def __init__(self, data_dir: Path, totals: Totals, log: Log, running: Callable[[], bool]) -> None:
        """Prepare the feed; ``running`` returns True if a centre is running on the store."""
        self._data_dir = data_dir
        self._totals = totals
        self._log = log
        self._running = running
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}
        self._slowly_at_s = 0.0
        self._closed = False

    def watch(self, stopping: Callable[[float], bool]) -> None:
        """Watch until ``stopping(wait_s)`` is true; a store that cannot be read is retried."""
        while not stopping(LOOK_S):
            try:
                with (
                    contextlib.closing(Archive(self._data_dir)) as archive,
                    contextlib.closing(RolloutStore(self._data_dir)) as rollouts,
                ):
                    self._look_on(archive, rollouts, stopping)
            except Exception as error:
                # Any other fault must not end this thread or go unnoticed either.
                reason = str(error) if isinstance(error, StoreError) else repr(error)
                if self._say("problem", reason):
                    self._log.write("page_store", reason=reason)

    def _look_on(self, archive: Archive, rollouts: RolloutStore, stopping: Callable[[float], bool]) -> None:
        seen = None
        while True:
            version = archive.version()
            if version != seen or not self._totals.counted:
                self._totals.refresh(archive)
                self._say("totals", self._totals.to_dict())
            if version != seen:
                newest = archive.sections(size=1)
                self._say("section", self._section(newest[0]) if newest else None)
                self._say("checked", archive.last_checked())
            seen = version
            # A device's silence changes nothing in the store, so check it by time.
            if time.monotonic() >= self._slowly_at_s:
                self._slowly_at_s = time.monotonic() + SLOWLY_S
                self._say("devices", [brief(view) for view in archive.devices(self._running())])
                self._say("rollout", next(map(rollout_dict, rollouts.rollouts()), None))
            self._say("problem", None)
            if stopping(LOOK_S):
                return

    def _section(self, newest: Section) -> dict[str, Any]:
        stored = newest.stored
        return {**detail(newest), "recording": has_recording(self._data_dir, stored.survey, stored.event)}

    def _say(self, kind: str, content: Any) -> bool:
        """Send a message to every listener if it differs from the last one; return True if it does."""
        text = to_json(content)
        with self._lock:
            if self._said.get(kind) == text:
                return False
            self._said[kind] = text
            for listener in self._listeners:
                listener.put(kind, text)
        return True

    @property
    def full(self) -> bool:
        return len(self._listeners) >= MAX_LISTENERS

    async def listen(self) -> AsyncIterator[str]:
        """Yield the stream of one browser: the current state, then changes."""
        listener = Listener()
        with self._lock:
            self._listeners.add(listener)
            for kind, text in self._said.items():
                listener.put(kind, text)
        try:
            yield self._alive()
            while not self._closed:
                news = await listener.take()
                yield "".join(_frame(kind, text) for kind, text in news.items()) or self._alive()
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream at its next message."""
        self._closed = True

    def _alive(self) -> str:
        return _frame("alive", json.dumps({"time_us": now_us(), "running": self._running()}))


def _frame(kind: str, text: str) -> str:
    return f"event: {kind}\ndata: {text}\n\n"


def shown(value: Any) -> Any:
    """Return a value of ``asdict`` with escaped text: browsers obey direction marks too."""
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    return printable(value) if isinstance(value, str) else value


def brief(view: DeviceView) -> dict[str, Any]:
    """Return a device for the page, without values that change by themselves; gaps only as their number."""
    return {k: v for k, v in shown(asdict(view)).items() if k not in ("age_s", "gaps", "n_gaps")} | {
        "gaps": view.n_gaps
    }


def rollout_dict(rollout: StoredRollout) -> dict[str, Any]:
    """Return a rollout, ready for JSON."""
    return {
        "version": rollout.version,
        "name": printable(rollout.name),
        "model_hash": rollout.model_hash.hex(),
        "created_us": rollout.created_us,
        "canaries": rollout.canaries,
        "stage": rollout.stage,
        "reason": printable(rollout.reason),
        "devices": [
            {"survey": survey, "device": device, **shown(asdict(state))}
            for (survey, device), state in rollout.devices.items()
        ],
    }
