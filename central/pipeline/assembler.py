"""Latents to events: complete, or past its deadline. Pure logic; the clock is the caller's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from central.storage.journal import JournalEntry

Key = tuple[int, int, bytes]
# Of five devices with latents of 128 bytes about 40 MB.
MOST_EVENTS = 10_000


@dataclass
class Event:
    """Latents of one event so far; of each device the newest in its own order counts."""

    key: Key
    n_devices: int
    due_s: float
    latents: dict[int, JournalEntry] = field(default_factory=dict)
    last_record: int = 0
    emitted_through: int = 0
    replaced: int = 0

    @property
    def complete(self) -> bool:
        return len(self.latents) == self.n_devices

    @property
    def fresh(self) -> bool:
        """Uses a latent that no map was drawn from yet."""
        return any(latent.id > self.emitted_through for latent in self.latents.values())


class Assembler:
    """Collects latents until an event is complete or ``deadline_s`` has passed since its first.

    A latent that comes after its event was emitted starts a new deadline, and the event is emitted
    again, complete or not. Emitted events are forgotten another ``deadline_s`` later, and at once where there are
    ``most`` events; the journal has them still. Latents are handed over in the order of their ``id``, none while it
    is ``full``, and ``now_s`` never goes back.
    """

    def __init__(self, deadline_s: float, most: int = MOST_EVENTS) -> None:
        self._deadline_s = deadline_s
        self._most = most
        # Every event waits equally long, so this stays in order of ``due_s`` by appending.
        self._waiting: dict[Key, Event] = {}
        self._emitted: dict[Key, Event] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._emitted)

    @property
    def full(self) -> bool:
        """As many events wait as may: until some are emitted, what else has come is to stay in the journal."""
        return len(self._waiting) >= self._most

    def knows(self, key: Key) -> bool:
        return key in self._waiting or key in self._emitted

    def restore(
        self, latents: Iterable[JournalEntry], n_devices: int, emitted_through: int, now_s: float
    ) -> None:
        """Take up an event from the journal; a map was drawn from its records up to ``emitted_through``."""
        for latent in latents:
            event = self._event(latent.key, n_devices, now_s)
            event.emitted_through = emitted_through
            _place(event, latent)
            self._file(event, now_s)

    def add(self, latent: JournalEntry, n_devices: int, now_s: float) -> Event | None:
        """Take a latent in; returns its event if that is complete now (and so to be decoded)."""
        event = self._event(latent.key, n_devices, now_s)
        _place(event, latent)
        self._file(event, now_s)
        if event.complete and event.fresh:
            self._emit(event)
            return event
        return None

    def due(self, now_s: float, most: int | None = None) -> list[Event]:
        """Incomplete events whose deadline has passed, the first ``most``; forgets what was emitted long ago.

        While it is ``full``, those that have waited longest are due at once: whole events may be behind them.
        """
        ready = []
        full = self.full
        for event in islice(self._waiting.values(), most):
            if event.due_s > now_s and not full:
                break
            ready.append(event)
        for event in ready:
            self._emit(event)
        forgotten_s = now_s - self._deadline_s
        while self._emitted:
            oldest = next(iter(self._emitted.values()))
            if oldest.due_s >= forgotten_s and len(self) <= self._most:
                break
            del self._emitted[oldest.key]
        return ready

    def next_due_s(self) -> float | None:
        """When ``due`` will next return an event, on the caller's clock; already past while it is ``full``."""
        if self.full:
            return 0.0
        return next((event.due_s for event in self._waiting.values()), None)

    def retry(self, event: Event, now_s: float) -> None:
        """Emit ``event`` again after another deadline: what was emitted came to nothing.

        It may be of an earlier time than what is held of it: then that is emitted, with what has come since.
        """
        waiting = self._waiting.get(event.key)
        held = waiting or self._emitted.pop(event.key, None)
        due_s = waiting.due_s if waiting else now_s + self._deadline_s
        if held and held.last_record > event.last_record:
            event = held
        event.emitted_through, event.due_s = 0, due_s
        # One that waits keeps its place, and so its turn.
        self._waiting[event.key] = event

    def _event(self, key: Key, n_devices: int, now_s: float) -> Event:
        known = self._waiting.get(key) or self._emitted.get(key)
        return known or Event(key, n_devices, now_s + self._deadline_s)

    def _file(self, event: Event, now_s: float) -> None:
        """Put ``event`` where it belongs; one that was emitted and is fresh again gets a new deadline."""
        if event.key in self._waiting:
            return
        known = self._emitted.pop(event.key, None)
        if known:
            event.due_s = now_s + self._deadline_s
        (self._waiting if event.fresh else self._emitted)[event.key] = event

    def _emit(self, event: Event) -> None:
        event.emitted_through = event.last_record
        self._waiting.pop(event.key, None)
        self._emitted[event.key] = event


def _place(event: Event, latent: JournalEntry) -> None:
    if latent.id <= event.last_record:
        # An event that is taken up from the journal has all that is there of it, before its turn comes.
        return
    event.last_record = latent.id
    held = event.latents.get(latent.device)
    if held is not None:
        event.replaced += 1
    if held is None or held.order < latent.order:
        event.latents[latent.device] = latent
