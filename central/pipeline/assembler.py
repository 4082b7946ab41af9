"""Assemble latents into events until they are complete or overdue. Pure logic; the caller supplies the clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from central.storage.journal import JournalEntry

Key = tuple[int, int, bytes]
# Maximum events held; about 40 MB for five devices with latents of 128 bytes.
MOST_EVENTS = 10_000


@dataclass
class Event:
    """Latents of one event so far. Of each device only its newest latent counts."""

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
        """True if a latent has not been used in a map yet."""
        return any(latent.id > self.emitted_through for latent in self.latents.values())


class Assembler:
    """Collect latents until an event is complete, or until ``deadline_s`` after its first latent.

    A latent that arrives after its event was emitted starts a new deadline. The event is then emitted again, complete
    or not. Emitted events are dropped from memory after another ``deadline_s``, or at once when ``most`` events are
    held; the journal keeps them. The caller adds latents in ``id`` order, adds none while ``full``, and never lets
    ``now_s`` go back.
    """

    def __init__(self, deadline_s: float, most: int = MOST_EVENTS) -> None:
        self._deadline_s = deadline_s
        self._most = most
        # Appending keeps the order by ``due_s``, since every event has the same deadline.
        self._waiting: dict[Key, Event] = {}
        self._emitted: dict[Key, Event] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._emitted)

    @property
    def full(self) -> bool:
        """True if the maximum number of events is waiting; new latents then stay in the journal."""
        return len(self._waiting) >= self._most

    def knows(self, key: Key) -> bool:
        return key in self._waiting or key in self._emitted

    def restore(
        self, latents: Iterable[JournalEntry], n_devices: int, emitted_through: int, now_s: float
    ) -> None:
        """Restore an event from the journal; records up to ``emitted_through`` already have a map."""
        for latent in latents:
            event = self._event(latent.key, n_devices, now_s)
            event.emitted_through = emitted_through
            _place(event, latent)
            self._file(event, now_s)

    def add(self, latent: JournalEntry, n_devices: int, now_s: float) -> Event | None:
        """Add a latent; return its event if that is now complete and ready to decode."""
        event = self._event(latent.key, n_devices, now_s)
        _place(event, latent)
        self._file(event, now_s)
        if event.complete and event.fresh:
            self._emit(event)
            return event
        return None

    def due(self, now_s: float, most: int | None = None) -> list[Event]:
        """Return up to ``most`` overdue incomplete events, and drop events emitted long ago.

        While ``full``, the oldest waiting events are due at once: complete events may be queued behind them.
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
        """Return when ``due`` will next return an event, on the caller's clock; in the past while ``full``."""
        if self.full:
            return 0.0
        return next((event.due_s for event in self._waiting.values()), None)

    def retry(self, event: Event, now_s: float) -> None:
        """Emit ``event`` again after another deadline, because its decoding failed.

        ``event`` may be older than the one held here. In that case the newer one is emitted.
        """
        waiting = self._waiting.get(event.key)
        held = waiting or self._emitted.pop(event.key, None)
        due_s = waiting.due_s if waiting else now_s + self._deadline_s
        if held and held.last_record > event.last_record:
            event = held
        event.emitted_through, event.due_s = 0, due_s
        # A waiting event keeps its place in the queue.
        self._waiting[event.key] = event

    def _event(self, key: Key, n_devices: int, now_s: float) -> Event:
        known = self._waiting.get(key) or self._emitted.get(key)
        return known or Event(key, n_devices, now_s + self._deadline_s)

    def _file(self, event: Event, now_s: float) -> None:
        """Put ``event`` into its queue; an emitted event with a new latent gets a new deadline."""
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
        # An event restored from the journal has all its latents before its turn comes.
        return
    event.last_record = latent.id
    held = event.latents.get(latent.device)
    if held is not None:
        event.replaced += 1
    if held is None or held.order < latent.order:
        event.latents[latent.device] = latent
