"""From journalled latents to stored maps: assemble events, decode what is ready together, keep the maps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path

import numpy as np

from central.arrivals import Arrivals
from central.assembler import Assembler, Event
from central.database import StoreError
from central.decoders import MapDecoder
from central.journal import Journal, Journalled
from central.store import NewMap, Store
from central.workers import Drawn, Workers
from firmware_py.log import Log, now_us
from physics.acquisition import Acquisition

# What waits is taken in together, so that the events it completes are decoded together.
TAKEN_RECORDS = 256
BATCH_EVENTS = 16
IDLE_S = 0.5
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
    """Work of one thread, which reads the journal on as far as ``arrivals`` says.

    ``decoders`` may grow while it works. ``workers`` are processes that decode, None for this thread itself.
    ``counts`` tells maps that are complete, partial, failed and not_kept; ``on_decoded`` is told of each how
    many seconds its decoding took.
    """

    def __init__(
        self,
        data_dir: Path,
        deadline_s: float,
        decoders: Mapping[bytes, MapDecoder],
        arrivals: Arrivals,
        log: Log,
        on_map: Callable[[MapPicture], None],
        workers: Workers | None = None,
        on_decoded: Callable[[float], None] = lambda decode_s: None,
    ) -> None:
        self._data_dir = data_dir
        self._assembler = Assembler(deadline_s)
        self._decoders = decoders
        self._arrivals = arrivals
        self._read = 0
        self._log = log
        self._on_map = on_map
        self._workers = workers
        self._on_decoded = on_decoded
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Draw what an earlier run left, then what arrives, until the arrivals end and all of it is stored."""
        self._journal, self._store = Journal(self._data_dir), Store(self._data_dir)
        try:
            kept = self._journal.newest()
            while self._read < kept:
                left = self._journal.undecoded(self._read, TAKEN_RECORDS)
                self._read = left[-1].id if left else kept
                self._finish(self._take_all(left))
                self._keep_drawn(wait=False)
            ended = False
            while not ended:
                ended = self._arrivals.wait(self._read, self._patience_s())
                arrived = self._journal.after(self._read, TAKEN_RECORDS)
                if arrived:
                    self._read = arrived[-1].id
                ready = self._take_all(arrived)
                ready += map(_as_it_is, self._assembler.due(time.monotonic()))
                self._finish(ready)
                self._keep_drawn(wait=ended)
        finally:
            self._journal.close()
            self._store.close()
            if self._workers:
                self._workers.close()

    def _patience_s(self) -> float:
        """How long arrivals may be waited for: not when an event is due first, or a worker may have finished."""
        due_s = self._assembler.next_due_s()
        wait_s = IDLE_S if due_s is None else min(max(due_s - time.monotonic(), 0.0), IDLE_S)
        return min(wait_s, BUSY_S) if self._workers and self._workers.busy else wait_s

    def _take_all(self, latents: Iterable[Journalled]) -> list[Event]:
        ready = (self._take(latent) for latent in latents)
        return [_as_it_is(event) for event in ready if event]

    def _take(self, latent: Journalled) -> Event | None:
        decoder = self._decoders.get(latent.model_hash)
        # Only what an earlier run kept: the model may have been taken out of the configuration since.
        if not (decoder and latent.device < decoder.n_devices and decoder.coding.is_latent(latent.payload)):
            self._log.write(
                "undecodable", event=latent.event, device=latent.device, model_hash=latent.model_hash.hex()
            )
            return None
        now_s = time.monotonic()
        if not self._assembler.knows(latent.key):
            earlier = [other for other in self._journal.of_event(latent.key) if other.id < latent.id]
            through = self._store.emitted_through(latent.key)
            self._assembler.restore(earlier, decoder.n_devices, through, now_s)
        return self._assembler.add(latent, decoder.n_devices, now_s)

    def _finish(self, events: list[Event]) -> None:
        """Draw and keep a map of each event; a bad one or a full disk does not end the centre."""
        for model_hash in dict.fromkeys(event.key[2] for event in events):
            of_model = iter([event for event in events if event.key[2] == model_hash])
            while batch := list(islice(of_model, BATCH_EVENTS)):
                self._draw(batch, self._decoders[model_hash])

    def _draw(self, events: list[Event], decoder: MapDecoder) -> None:
        latents, present = _heard(events, decoder)
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

    def _keep_or_fail(self, drawn: Drawn) -> None:
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
            fresh = [self._store.emitted_through(event.key) < event.last_record for event in events]
            events = [event for event, is_fresh in zip(events, fresh, strict=True) if is_fresh]
            maps = (maps[0][fresh], maps[1][fresh])
        entries = [
            NewMap(
                event.key,
                event.last_record,
                not event.complete,
                velocity[0],
                uncertainty[0],
                _provenance(event, decoder, assembled_us, decoded_us),
            )
            for event, velocity, uncertainty in zip(events, *maps, strict=True)
        ]
        try:
            revisions = self._store.put(entries)
        except StoreError as error:
            self.counts["not_kept"] += len(events)
            for event in events:
                survey, number, _ = event.key
                self._log.write("map_not_kept", survey=survey, event=number, reason=str(error))
                self._assembler.retry(event, time.monotonic())
            return
        for entry, revision in zip(entries, revisions, strict=True):
            survey, number, _ = entry.key
            heard = entry.provenance["devices"]
            self.counts["partial" if entry.partial else "complete"] += 1
            self._on_decoded((decoded_us - assembled_us) / 1e6)
            self._log.write(
                "map",
                survey=survey,
                event=number,
                revision=revision,
                devices=heard,
                partial=entry.partial,
                decode_ms=round((decoded_us - assembled_us) / 1000, 3),
                together=len(entries),
            )
            self._on_map(
                MapPicture(
                    survey, number, entry.velocity_mps, entry.uncertainty_mps, decoder.acquisition, heard
                )
            )


def _as_it_is(event: Event) -> Event:
    """The event as it was emitted: it may take in later latents before this one's turn comes."""
    return replace(event, latents=dict(event.latents))


def _heard(events: list[Event], decoder: MapDecoder) -> tuple[np.ndarray, np.ndarray]:
    """int8 latents ``(n, n_devices, latent)``, and which of them were heard ``(n, n_devices)``."""
    latents = np.zeros((len(events), decoder.n_devices, decoder.latent), np.int8)
    present = np.zeros(latents.shape[:2], bool)
    for row, event in enumerate(events):
        for device, latent in event.latents.items():
            latents[row, device] = decoder.coding.unpack(latent.payload)
            present[row, device] = True
    return latents, present


def _judged(event: Event, decoder: MapDecoder) -> dict:
    """How like the training gathers this event is, and a flag where it is not."""
    (latents,), (present,) = _heard([event], decoder)
    rates = [decoder.coding.rates[0]] * decoder.n_devices
    for device, latent in event.latents.items():
        rates[device] = decoder.coding.rate(len(latent.payload))
    found = decoder.unfamiliarity(latents, present, rates)
    if found is None:
        return {}
    score, limit = found
    judged: dict = {"unfamiliarity": {"score": round(score, 3), "limit": round(limit, 3)}}
    if score > limit:
        judged["flags"] = [
            f"recorded unlike what the model was trained on (score {score:.1f}, limit {limit:.1f}): noise, another "
            "wavelet or source strength, or an earth of another kind"
        ]
    return judged


def _provenance(event: Event, decoder: MapDecoder, assembled_us: int, decoded_us: int) -> dict:
    records = event.latents.values()
    return {
        "devices": sorted(event.latents),
        "replaced": event.replaced,
        "model_hash": event.key[2].hex(),
        "decoder_sha256": decoder.sha256,
        "sample_time_us": min(record.sampled_us for record in records),
        "first_received_us": min(record.received_us for record in records),
        "last_received_us": max(record.received_us for record in records),
        "assembled_us": assembled_us,
        "decoded_us": decoded_us,
        "received_bytes": sum(record.wire_bytes for record in records),
        "latent_bytes": {str(device): len(event.latents[device].payload) for device in sorted(event.latents)},
        "software": _software(),
        "acquisition": decoder.acquisition.to_dict(),
        **_judged(event, decoder),
    }


def _software() -> dict[str, str]:
    try:
        return {"epic-fwi": metadata.version("epic-fwi")}
    except metadata.PackageNotFoundError:
        return {}
