"""From journalled latents to stored maps: assemble events, decode what is ready together, keep the maps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from central.pipeline.assembler import MOST_EVENTS, Assembler, Event
from central.pipeline.decoders import MapDecoder
from central.pipeline.provenance import heard, provenance_of
from central.pipeline.workers import DecodeResult, Workers
from central.storage.database import StoreError
from central.storage.journal import Journal, JournalEntry
from central.storage.journal_cursor import JournalCursor
from central.storage.map_store import NewMap, Store
from firmware_py.runtime.log import Log, now_us
from physics.acquisition import Acquisition

# What waits is taken in together, so that the events it completes are decoded together.
TAKEN_RECORDS = 256
# Of many that are due together so many have their turn before what has come meanwhile.
DUE_EVENTS = 64
BATCH_EVENTS = 16
IDLE_S = 0.5
RETRY_S = 1.0
BUSY_S = 0.02


@dataclass(frozen=True)
class MapPicture:
    """What a picture is drawn of; maps are ``(nz, nx)`` in m/s."""

    survey: int
    event: int
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    acquisition: Acquisition
    heard: list[int]


class Decoding:
    """Work of one thread, which reads the journal on as far as ``cursor`` says.

    ``decoders`` may grow while it works. ``workers`` are processes that decode, None for this thread itself.
    ``counts`` tells maps that are complete, partial, failed and commit_failed; ``on_decoded`` is told of each how
    many seconds its decoding took.
    """

    def __init__(
        self,
        data_dir: Path,
        deadline_s: float,
        decoders: Mapping[bytes, MapDecoder],
        cursor: JournalCursor,
        log: Log,
        on_map: Callable[[MapPicture], None],
        workers: Workers | None = None,
        on_decoded: Callable[[float], None] = lambda decode_s: None,
    ) -> None:
        self._data_dir = data_dir
        self._assembler = Assembler(deadline_s, MOST_EVENTS)
        self._decoders = decoders
        self._cursor = cursor
        self._read = 0
        self._complaint = ""
        # When the last turn of its loop began, by the monotonic clock.
        self.turned_s = time.monotonic()
        # Up to here the journal is an earlier run's.
        self._left = 0
        self._log = log
        self._on_map = on_map
        self._workers = workers
        self._on_decoded = on_decoded
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Draw what an earlier run left, then what arrives, until the arrivals end and what is complete is stored."""
        self._journal, self._store = Journal(self._data_dir, self._log), Store(self._data_dir)
        try:
            self._left = self._journal.newest()
            self._cursor.tell(self._left)
            ended = False
            while not ended:
                self.turned_s = time.monotonic()
                ready = self._take_on()
                ready += map(_as_it_is, self._assembler.due(time.monotonic(), DUE_EVENTS))
                self._finish(ready)
                ended = self._cursor.wait(self._read, self._patience_s(), self._assembler.full)
                self._keep_drawn(wait=ended)
        finally:
            self._journal.close()
            self._store.close()
            if self._workers:
                self._workers.close()

    def _take_on(self) -> list[Event]:
        """Take in what the journal has next; returns the events that are complete.

        A failed read is logged and tried again: what is received is safe meanwhile.
        """
        ready: list[Event] = []
        try:
            latents, through = self._read_on()
            for latent in latents:
                event = self._take(latent)
                self._read = latent.id
                if event:
                    ready.append(_as_it_is(event))
            self._read, self._complaint = through, ""
        except StoreError as error:
            if str(error) != self._complaint:
                self._log.write("journal_not_read", reason=str(error))
            self._complaint = str(error)
            self._cursor.wait(self._read, RETRY_S, full=True)
        return ready

    def _read_on(self) -> tuple[list[JournalEntry], int]:
        """The next latents of the journal and the id they were read to, as long as there is room for their events; of
        what an earlier run left only those without a map."""
        if self._assembler.full:
            return [], self._read
        if self._read < self._left:
            latents = self._journal.undecoded(self._read, TAKEN_RECORDS)
            return latents, self._journal.read_through or self._left
        latents = self._journal.after(self._read, TAKEN_RECORDS)
        return latents, self._journal.read_through or self._read

    def _patience_s(self) -> float:
        """How long arrivals may be waited for: not when an event is due first, or a worker may have finished."""
        due_s = self._assembler.next_due_s()
        wait_s = IDLE_S if due_s is None else min(max(due_s - time.monotonic(), 0.0), IDLE_S)
        return min(wait_s, BUSY_S) if self._workers and self._workers.busy else wait_s

    def _take(self, latent: JournalEntry) -> Event | None:
        decoder = self._decoder_of(latent)
        if decoder is None:
            self._log.write(
                "undecodable", event=latent.event, device=latent.device, model_hash=latent.model_hash.hex()
            )
            return None
        now_s = time.monotonic()
        if not self._assembler.knows(latent.key):
            # All of it that has come, also what is not read yet: of a backlog no event is drawn twice for that.
            latents = self._journal.latents_of(latent.key, decoder.n_devices)
            known = [other for other in latents if self._decoder_of(other)]
            through = self._store.emitted_through(latent.key)
            self._assembler.restore(known, decoder.n_devices, through, now_s)
        return self._assembler.add(latent, decoder.n_devices, now_s)

    def _decoder_of(self, latent: JournalEntry) -> MapDecoder | None:
        """None only for what an earlier run kept: the model may have been taken out of the configuration since."""
        decoder = self._decoders.get(latent.model_hash)
        fits = decoder and latent.device < decoder.n_devices and decoder.coding.is_latent(latent.payload)
        return decoder if fits else None

    def _finish(self, events: list[Event]) -> None:
        """Draw and keep a map of each event, until it is over; a bad one or a full disk does not end the centre."""
        for model_hash in dict.fromkeys(event.key[2] for event in events):
            of_model = iter([event for event in events if event.key[2] == model_hash])
            while batch := list(islice(of_model, BATCH_EVENTS)):
                if self._cursor.over:
                    return
                self._draw(batch, self._decoders[model_hash])
                # Else maps that workers have drawn would pile up.
                self._keep_drawn(wait=False)

    def _draw(self, events: list[Event], decoder: MapDecoder) -> None:
        latents, present = heard(events, decoder)
        assembled_us = now_us()
        if self._workers:
            self._workers.submit(decoder, latents, present, (events, assembled_us))
            return
        try:
            maps = decoder.decode_batch(latents, present)
        except Exception as error:
            self._failed(events, decoder, error)
        else:
            self._keep(events, decoder, maps, assembled_us)

    def _keep_drawn(self, wait: bool) -> None:
        """Keep what workers have drawn; with ``wait``, all that they were given."""
        for drawn in self._workers.finished(wait) if self._workers else ():
            self._keep_or_fail(drawn)

    def _keep_or_fail(self, drawn: DecodeResult) -> None:
        events, assembled_us = drawn.given
        decoder = self._decoders[events[0].key[2]]
        if drawn.lost:
            # Of no fault of theirs: a worker died.
            self._log.write("worker_lost", events=len(events), reason=repr(drawn.error))
            for event in events:
                self._assembler.retry(event, time.monotonic())
        elif drawn.error:
            self._failed(events, decoder, drawn.error)
        else:
            self._keep(events, decoder, drawn.maps, assembled_us)

    def _failed(self, events: list[Event], decoder: MapDecoder, error: BaseException) -> None:
        if len(events) > 1:
            # One of them: the others are not to wait for it.
            for event in events:
                self._draw([event], decoder)
            return
        self.counts["failed"] += 1
        survey, number, _ = events[0].key
        # The latents stay in the journal; the next start tries again.
        self._log.write("map_failed", survey=survey, event=number, reason=repr(error))

    def _keep(
        self,
        events: list[Event],
        decoder: MapDecoder,
        maps: tuple[np.ndarray, np.ndarray],
        assembled_us: int,
    ) -> None:
        decoded_us = now_us()
        if self._workers:
            # A later batch may have been faster: what it drew from more latents stays the newest.
            try:
                fresh = [self._store.emitted_through(event.key) < event.last_record for event in events]
            except StoreError as error:
                self._commit_failed(events, error)
                return
            events = [event for event, is_fresh in zip(events, fresh, strict=True) if is_fresh]
            maps = (maps[0][fresh], maps[1][fresh])
        entries = [
            NewMap(
                event.key,
                event.last_record,
                not event.complete,
                velocity[0],
                uncertainty[0],
                provenance_of(event, decoder, uncertainty[0], assembled_us, decoded_us),
            )
            for event, velocity, uncertainty in zip(events, *maps, strict=True)
        ]
        try:
            revisions = self._store.put(entries)
        except StoreError as error:
            self._commit_failed(events, error)
            return
        for entry, revision in zip(entries, revisions, strict=True):
            survey, number, _ = entry.key
            devices = entry.provenance["devices"]
            self.counts["partial" if entry.partial else "complete"] += 1
            self._on_decoded((decoded_us - assembled_us) / 1e6)
            self._log.write(
                "map",
                survey=survey,
                event=number,
                revision=revision,
                devices=devices,
                partial=entry.partial,
                decode_ms=round((decoded_us - assembled_us) / 1000, 3),
                together=len(entries),
            )
            self._on_map(
                MapPicture(
                    survey, number, entry.velocity_mps, entry.uncertainty_mps, decoder.acquisition, devices
                )
            )

    def _commit_failed(self, events: list[Event], error: StoreError) -> None:
        self.counts["commit_failed"] += len(events)
        for event in events:
            survey, number, _ = event.key
            self._log.write("map_commit_failed", survey=survey, event=number, reason=str(error))
            self._assembler.retry(event, time.monotonic())


def _as_it_is(event: Event) -> Event:
    """The event as it was emitted: it may take in later latents before this one's turn comes."""
    return replace(event, latents=dict(event.latents))
