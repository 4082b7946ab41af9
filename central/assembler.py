"""Latents to events: complete, or past its deadline. Pure logic; the clock is the caller's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from central.journal import Journalled

Key = tuple[int, int, bytes]


@dataclass
class Event:
    """Latents of one event so far; the newest of each device counts."""

    key: Key
    n_devices: int
    due_s: float
    latents: dict[int, Journalled] = field(default_factory=dict)
    emitted_through: int = 0
    replaced: int = 0

    @property
    def complete(self) -> bool:
        return len(self.latents) == self.n_devices

    @property
    def last_record(self) -> int:
        return max(latent.id for latent in self.latents.values())

    @property
    def fresh(self) -> bool:
        """Holds a latent that no map was drawn from yet."""
        return bool(self.latents) and self.last_record > self.emitted_through


class Assembler:
    """Collects latents until an event is complete or ``deadline_s`` has passed since its first.

    A latent that comes after its event was emitted starts a new deadline, and the event is emitted
    again, complete or not. Emitted events are forgotten after a while; the journal has them still.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._events: dict[Key, Event] = {}

    def __len__(self) -> int:
        return len(self._events)

    def knows(self, key: Key) -> bool:
        return key in self._events

    def restore(
        self, latents: Iterable[Journalled], n_devices: int, emitted_through: int, now_s: float
    ) -> None:
        """Take up an event from the journal as it stood when a map was last drawn from it."""
        for latent in latents:
            self._place(latent, n_devices, now_s).emitted_through = emitted_through

    def add(self, latent: Journalled, n_devices: int, now_s: float) -> Event | None:
        """Take a latent in; returns its event if that is complete now (and so to be decoded)."""
        known = self._events.get(latent.key)
        late = known is not None and not known.fresh
        event = self._place(latent, n_devices, now_s)
        if late:
            event.due_s = now_s + self._deadline_s
        if event.complete and event.fresh:
            event.emitted_through = event.last_record
            return event
        return None

    def _place(self, latent: Journalled, n_devices: int, now_s: float) -> Event:
        event = self._events.get(latent.key)
        if event is None:
            event = Event(latent.key, n_devices, now_s + self._deadline_s)
            self._events[latent.key] = event
        older = event.latents.get(latent.device)
        if older is None or older.id < latent.id:
            event.replaced += older is not None
            event.latents[latent.device] = latent
        return event

    def due(self, now_s: float) -> list[Event]:
        """Incomplete events whose deadline has passed; forgets what was emitted long ago."""
        ready = [event for event in self._events.values() if event.fresh and event.due_s <= now_s]
        for event in ready:
            event.emitted_through = event.last_record
        forgotten_s = now_s - 10 * self._deadline_s
        for key in [k for k, e in self._events.items() if not e.fresh and e.due_s < forgotten_s]:
            del self._events[key]
        return ready

    def next_due_s(self) -> float | None:
        """When ``due`` will next return an event, on the caller's clock."""
        return min((event.due_s for event in self._events.values() if event.fresh), default=None)
