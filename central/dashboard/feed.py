"""What has changed, pushed to every browser that listens: server-sent events."""

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

from central.dashboard.archive import Archive, detail, to_json
from central.dashboard.totals import Totals
from central.fleet.device_views import DeviceView
from central.storage.database import StoreError
from central.updates.rollout_store import RolloutStore, StoredRollout
from firmware_py.protocol.printable import printable
from firmware_py.runtime.log import Log, now_us

LOOK_S = 0.25
SLOWLY_S = 1.0
# A browser that has heard nothing for a few of these says that it has lost the centre.
ALIVE_S = 2.0
MAX_LISTENERS = 32


class Listener:
    """One browser; of each kind of news it gets the newest, however slowly it reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fresh = asyncio.Event()
        self._pending: dict[str, str] = {}

    def put(self, kind: str, text: str) -> None:
        """From any thread."""
        # The loop is closed when the page is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, kind, text)

    def _put(self, kind: str, text: str) -> None:
        self._pending[kind] = text
        self._fresh.set()

    async def take(self) -> dict[str, str]:
        """What is new by kind; nothing when ``ALIVE_S`` passed without news."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._fresh.wait(), ALIVE_S)
        self._fresh.clear()
        taken, self._pending = self._pending, {}
        return taken


class Feed:
    """Looks at the store from a thread of its own, ``watch``, and tells every listener what is new.

    Kinds: ``totals``, ``section`` (the last map drawn, null before the first), ``checked`` (id of the map that was
    held against the waves last, and when; null before the first), ``devices``, ``rollout``,
    ``problem`` (why the store cannot be read, null when it can), ``alive``.
    """

    def __init__(self, data_dir: Path, totals: Totals, log: Log, running: bool) -> None:
        """``running`` is whether the page is that of a centre at work, or a view of its store."""
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
        """Look until ``stopping(wait_s)``; a store that cannot be read is tried again."""
        while not stopping(LOOK_S):
            try:
                with (
                    contextlib.closing(Archive(self._data_dir)) as archive,
                    contextlib.closing(RolloutStore(self._data_dir)) as rollouts,
                ):
                    self._look_on(archive, rollouts, stopping)
            except Exception as error:
                # Also what is no fault of the store's must neither end this thread nor go unseen.
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
                self._say("section", detail(newest[0]) if newest else None)
                self._say("checked", archive.last_checked())
            seen = version
            # A device that falls silent changes nothing in the store.
            if time.monotonic() >= self._slowly_at_s:
                self._slowly_at_s = time.monotonic() + SLOWLY_S
                self._say("devices", [brief(view) for view in self._devices(archive)])
                self._say("rollout", next(map(rollout_dict, rollouts.rollouts()), None))
            self._say("problem", None)
            if stopping(LOOK_S):
                return

    def _devices(self, archive: Archive) -> list[DeviceView]:
        """As of now; without a centre at work, as of when it last heard a device."""
        views = archive.devices(now_us())
        if self._running or not views:
            return views
        return archive.devices(max(view.last_heard_us for view in views))

    def _say(self, kind: str, content: Any) -> bool:
        """Tell every listener, unless it is what was said before; returns whether it is new."""
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
        """The stream of one browser: what there is, then what comes."""
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
        """End every stream at its next turn."""
        self._closed = True

    def _alive(self) -> str:
        return _frame("alive", json.dumps({"time_us": now_us(), "running": self._running}))


def _frame(kind: str, text: str) -> str:
    return f"event: {kind}\ndata: {text}\n\n"


def shown(value: Any) -> Any:
    """A value of ``asdict`` with every text as it may be shown: a browser obeys marks of direction, too."""
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    return printable(value) if isinstance(value, str) else value


def brief(view: DeviceView) -> dict[str, Any]:
    """A device for the page: without what changes by itself, and gaps as their number."""
    return {k: v for k, v in shown(asdict(view)).items() if k not in ("age_s", "gaps", "n_gaps")} | {
        "gaps": view.n_gaps
    }


def rollout_dict(rollout: StoredRollout) -> dict[str, Any]:
    """A rollout, ready for JSON."""
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
