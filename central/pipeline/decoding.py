"""Decode journalled latents into stored maps: assemble events, decode in batches, store."""

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
from central.pipeline.provenance import latents_of, provenance_of
from central.pipeline.workers import DecodeResult, Workers
from central.storage.database import StoreError
from central.storage.journal import Journal, JournalEntry
from central.storage.journal_cursor import JournalCursor
from central.storage.map_store import NewMap, Store
from firmware_py.runtime.log import Log, now_us
from physics.acquisition import Acquisition

# Latents read per pass, so that the events they complete are decoded together.
TAKEN_RECORDS = 256
# Overdue events handled per pass, before new arrivals are read.
DUE_EVENTS = 64
BATCH_EVENTS = 16
IDLE_S = 0.5
RETRY_S = 1.0
BUSY_S = 0.02


@dataclass(frozen=True)
class DecodedMap:
    """A map that was decoded and stored, ``(nz, nx)`` in m/s; ``devices`` are those that it was decoded from."""

    survey: int
    event: int
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    acquisition: Acquisition
    devices: list[int]
    decode_s: float


class Decoding:
    """Decoding loop of one thread, which follows the journal through ``cursor``.

    ``decoders`` may grow while it runs. ``workers`` are decoder processes; with None this thread decodes.
    ``counts`` holds the numbers of maps that are complete, partial, failed and commit_failed.
    """

    def __init__(
        self,
        data_dir: Path,
        deadline_s: float,
        decoders: Mapping[bytes, MapDecoder],
        cursor: JournalCursor,
        log: Log,
        on_map: Callable[[DecodedMap], None],
        workers: Workers | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._assembler = Assembler(deadline_s, MOST_EVENTS)
        self._decoders = decoders
        self._cursor = cursor
        self._read = 0
        self._complaint = ""
        # Monotonic time at which the last loop pass began.
        self.turned_s = time.monotonic()
        # Id of the last record that an earlier run received.
        self._left = 0
        self._log = log
        self._on_map = on_map
        self._workers = workers
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Decode the backlog of earlier runs, then new arrivals, until they end and every complete event is stored."""
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
                self._store_finished(wait=ended)
        finally:
            self._journal.close()
            self._store.close()
            if self._workers:
                self._workers.close()

    def _take_on(self) -> list[Event]:
        """Read the next journal records and return the events that are now complete.

        A failed read is logged and retried; the received records are safe in the journal.
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
        """Return the next latents of the journal and the id read up to, limited by free event slots.

        Of an earlier run's records, only those without a map are returned.
        """
        if self._assembler.full:
            return [], self._read
        if self._read < self._left:
            latents = self._journal.undecoded(self._read, TAKEN_RECORDS)
            return latents, self._journal.read_through or self._left
        latents = self._journal.after(self._read, TAKEN_RECORDS)
        return latents, self._journal.read_through or self._read

    def _patience_s(self) -> float:
        """Return the wait for arrivals, in seconds; zero if an event is overdue or a worker may have finished."""
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
            # Include latents that arrived but are not read yet, so that no backlog event is decoded twice.
            latents = self._journal.latents_of(latent.key, decoder.n_devices)
            known = [other for other in latents if self._decoder_of(other)]
            through = self._store.emitted_through(latent.key)
            self._assembler.restore(known, decoder.n_devices, through, now_s)
        return self._assembler.add(latent, decoder.n_devices, now_s)

    def _decoder_of(self, latent: JournalEntry) -> MapDecoder | None:
        """Return the event's decoder. None only for a backlog event whose model was removed from the configuration."""
        decoder = self._decoders.get(latent.model_hash)
        fits = decoder and latent.device < decoder.n_devices and decoder.coding.is_latent(latent.payload)
        return decoder if fits else None

    def _finish(self, events: list[Event]) -> None:
        """Decode and store each event. A bad event or a full disk does not stop the centre."""
        for model_hash in dict.fromkeys(event.key[2] for event in events):
            of_model = iter([event for event in events if event.key[2] == model_hash])
            while batch := list(islice(of_model, BATCH_EVENTS)):
                if self._cursor.over:
                    return
                self._decode(batch, self._decoders[model_hash])
                # Otherwise maps from workers would pile up.
                self._store_finished(wait=False)

    def _decode(self, events: list[Event], decoder: MapDecoder) -> None:
        latents, present = latents_of(events, decoder)
        assembled_us = now_us()
        if self._workers:
            self._workers.submit(decoder, latents, present, (events, decoder, assembled_us))
            return
        try:
            maps = decoder.decode_batch(latents, present)
        except Exception as error:
            self._failed(events, decoder, error)
        else:
            self._keep(events, decoder, maps, assembled_us)

    def _store_finished(self, wait: bool) -> None:
        """Store finished maps from the workers; with ``wait``, all outstanding ones."""
        for result in self._workers.finished(wait) if self._workers else ():
            self._store_result(result)

    def _store_result(self, result: DecodeResult) -> None:
        # The decoder may have been replaced since; a map's provenance names the one that made it.
        events, decoder, assembled_us = result.given
        if result.lost:
            # The worker died; retry its events.
            self._log.write("worker_lost", events=len(events), reason=repr(result.error))
            for event in events:
                self._assembler.retry(event, time.monotonic())
        elif result.error:
            self._failed(events, decoder, result.error)
        else:
            self._keep(events, decoder, result.maps, assembled_us)

    def _failed(self, events: list[Event], decoder: MapDecoder, error: BaseException) -> None:
        if len(events) > 1:
            # One event failed; retry the others without it.
            for event in events:
                self._decode([event], decoder)
            return
        self.counts["failed"] += 1
        survey, number, _ = events[0].key
        # The latents stay in the journal; the next start retries them.
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
            # A later batch may have finished first. Its map, of more latents, stays the newest.
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
        decode_s = (decoded_us - assembled_us) / 1e6
        for entry, revision in zip(entries, revisions, strict=True):
            survey, number, _ = entry.key
            devices = entry.provenance["devices"]
            self.counts["partial" if entry.partial else "complete"] += 1
            self._log.write(
                "map",
                survey=survey,
                event=number,
                revision=revision,
                devices=devices,
                partial=entry.partial,
                decode_ms=round(1000 * decode_s, 3),
                together=len(entries),
            )
            self._on_map(
                DecodedMap(
                    survey,
                    number,
                    entry.velocity_mps,
                    entry.uncertainty_mps,
                    decoder.acquisition,
                    devices,
                    decode_s,
                )
            )

    def _commit_failed(self, events: list[Event], error: StoreError) -> None:
        self.counts["commit_failed"] += len(events)
        for event in events:
            survey, number, _ = event.key
            self._log.write("map_commit_failed", survey=survey, event=number, reason=str(error))
            self._assembler.retry(event, time.monotonic())


def _as_it_is(event: Event) -> Event:
    """Return a copy of the event as emitted: it may gain latents before this copy is decoded."""
    return replace(event, latents=dict(event.latents))
