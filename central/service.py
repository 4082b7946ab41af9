"""The centre at work: one thread receives, one assembles and decodes, one draws pictures."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import zmq

from central.assembler import Assembler, Event
from central.config import CentralConfig, ModelSection
from central.database import StoreError, lock
from central.decoders import MapDecoder, load_release
from central.gateway import Gateway
from central.guard import Guard
from central.journal import Journal, Journalled
from central.keys import KeyRing
from central.line import Seals
from central.receiver import GATEWAYS, Expected, Receiver
from central.rollout import Rollouts
from central.store import Store
from firmware_py import packet
from firmware_py.link_zmq import open_dealer
from firmware_py.log import Log, now_us
from physics.acquisition import Acquisition

PICTURES_WAITING = 100


class Service:
    """Receiver, assembler, decoder and pictures around one data folder."""

    def __init__(
        self,
        config: CentralConfig,
        decoders: Mapping[bytes, MapDecoder],
        log: Log,
        load: Callable[[ModelSection], tuple[bytes, MapDecoder]] | None = None,
    ) -> None:
        """``decoders`` are those of the configuration; ``load`` reads what a rollout adds to them."""
        self._config = config.central
        self._gateway: Gateway | None = None
        self._decoders = dict(decoders)
        self._log = log
        self._stop = threading.Event()
        self._inbox: queue.SimpleQueue[Journalled | None] = queue.SimpleQueue()
        self._pictures: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # The journal first: what it cannot keep must not be received.
        Journal(self._config.data_dir).close()
        self._lock = lock(self._config.data_dir)
        self._expected = {h: Expected(d.n_devices, d.latent) for h, d in decoders.items()}
        self._rollouts = Rollouts(
            self._config.data_dir, self._decoders, load or load_release, self._adopt, log
        )
        try:
            self._rollouts.restore()
            self.receiver = Receiver(
                self._config.listen,
                self._config.data_dir,
                self._expected,
                self._inbox.put,
                log,
                handlers={packet.UPDATE: self._rollouts.handle},
                guard=Guard(self._config.keys) if self._config.keys else None,
            )
            if config.gateway:
                keys = KeyRing(self._config.keys) if self._config.keys else None
                self._gateway = Gateway(config.gateway, Seals(keys), self._own_line, log)
        except BaseException:
            self._lock.close()
            raise
        self.failure: BaseException | None = None

    def stop(self, *_: object) -> None:
        """Ask ``run`` to end (a signal handler)."""
        self._stop.set()

    def run(self) -> None:
        """Work until ``stop``; may be called once.

        Then every complete event is decoded and stored before this returns; one that still waits for
        devices is in the journal, and is taken up by the next start. Raises ``StoreError`` when the
        centre's file cannot be read.
        """
        receiving = threading.Thread(target=self._guard, args=(self._receive,), name="receiver")
        decoding = threading.Thread(target=self._guard, args=(self._decode,), name="decoder")
        drawing = threading.Thread(target=self._draw, name="pictures", daemon=True)
        lines = threading.Thread(target=self._guard, args=(self._serve_lines,), name="gateway")
        watching = partial(self._rollouts.watch, self._stop)
        rolling = threading.Thread(target=self._guard, args=(watching,), name="rollout")
        drawing.start()
        decoding.start()
        receiving.start()
        lines.start()
        if not self._config.keys:
            self._log.write("insecure", reason="no keys: whoever can connect on this machine is believed")
        self._log.write("ready", endpoint=self.receiver.endpoint, models=[h.hex() for h in self._decoders])
        rolling.start()
        while receiving.is_alive() and decoding.is_alive() and not self._stop.wait(0.2):
            pass
        self._stop.set()
        # Lines hold sockets of the receiver's context, which ends only when they have closed them.
        lines.join()
        receiving.join()
        rolling.join()
        self._inbox.put(None)
        decoding.join()
        self._pictures.put(None)
        drawing.join(timeout=30.0)
        self._lock.close()
        self._log.write("stopped", **self.receiver.counts)
        if self.failure:
            raise self.failure

    def _guard(self, work: Callable[[], None]) -> None:
        """A thread that dies must not leave the centre half alive."""
        try:
            work()
        except BaseException as error:
            self.failure = error
            self._stop.set()

    def _own_line(self) -> zmq.Socket:
        """A line's way to the receiver, within this process."""
        upstream = open_dealer(self.receiver.context, None)
        upstream.connect(GATEWAYS)
        return upstream

    def _serve_lines(self) -> None:
        if self._gateway:
            self._gateway.run(self._stop.is_set)

    def _adopt(self, model_hash: bytes, decoder: MapDecoder) -> None:
        """The decoder first: what the receiver lets in can be decoded."""
        self._decoders[model_hash] = decoder
        self._expected[model_hash] = Expected(decoder.n_devices, decoder.latent)

    def _receive(self) -> None:
        self.receiver.run(self._stop.is_set)

    def _decode(self) -> None:
        journal, store = Journal(self._config.data_dir), Store(self._config.data_dir)
        assembler = Assembler(self._config.deadline_s)
        try:
            for latent in journal.undecoded():
                self._take(latent, assembler, journal, store)
            while True:
                due_s = assembler.next_due_s()
                wait_s = 0.5 if due_s is None else min(max(due_s - time.monotonic(), 0.0), 0.5)
                try:
                    arrived = self._inbox.get(timeout=wait_s)
                except queue.Empty:
                    pass
                else:
                    if arrived is None:
                        break
                    self._take(arrived, assembler, journal, store)
                for event in assembler.due(time.monotonic()):
                    self._finish(event, assembler, store)
        finally:
            journal.close()
            store.close()

    def _take(self, latent: Journalled, assembler: Assembler, journal: Journal, store: Store) -> None:
        decoder = self._decoders.get(latent.model_hash)
        # Only what an earlier run kept: the model may have been taken out of the configuration since.
        if decoder is None or latent.device >= decoder.n_devices or len(latent.payload) != decoder.latent:
            self._log.write(
                "undecodable", event=latent.event, device=latent.device, model_hash=latent.model_hash.hex()
            )
            return
        now_s = time.monotonic()
        if not assembler.knows(latent.key):
            earlier = [other for other in journal.of_event(latent.key) if other.id < latent.id]
            assembler.restore(earlier, decoder.n_devices, store.emitted_through(latent.key), now_s)
        event = assembler.add(latent, decoder.n_devices, now_s)
        if event:
            self._finish(event, assembler, store)

    def _finish(self, event: Event, assembler: Assembler, store: Store) -> None:
        """Draw and keep a map of ``event``; one bad event or a full disk does not end the centre."""
        survey, number, _ = event.key
        try:
            self._draw_map(event, store)
        except StoreError as error:
            self._log.write("map_not_kept", survey=survey, event=number, reason=str(error))
            assembler.retry(event, time.monotonic())
        except Exception as error:
            # The latents stay in the journal; the next start tries again.
            self._log.write("map_failed", survey=survey, event=number, reason=repr(error))

    def _draw_map(self, event: Event, store: Store) -> None:
        survey, number, model_hash = event.key
        decoder = self._decoders[model_hash]
        assembled_us = now_us()
        latents = np.zeros((decoder.n_devices, decoder.latent), np.int8)
        present = np.zeros(decoder.n_devices, bool)
        for device, latent in event.latents.items():
            latents[device] = np.frombuffer(latent.payload, np.int8)
            present[device] = True
        velocity, uncertainty = decoder.decode(latents, present)
        decoded_us = now_us()
        records = event.latents.values()
        provenance = {
            "devices": sorted(event.latents),
            "replaced": event.replaced,
            "model_hash": model_hash.hex(),
            "decoder_sha256": decoder.sha256,
            "sample_time_us": min(record.sample_time_us for record in records),
            "first_received_us": min(record.received_us for record in records),
            "last_received_us": max(record.received_us for record in records),
            "assembled_us": assembled_us,
            "decoded_us": decoded_us,
            "received_bytes": sum(record.wire_bytes for record in records),
            "software": _software(),
            "acquisition": decoder.acquisition.to_dict(),
        }
        revision = store.put(
            event.key, event.last_record, not event.complete, velocity[0], uncertainty[0], provenance
        )
        self._log.write(
            "map",
            survey=survey,
            event=number,
            revision=revision,
            devices=provenance["devices"],
            partial=not event.complete,
            decode_ms=round((decoded_us - assembled_us) / 1000, 3),
        )
        if self._config.pictures:
            path = self._config.data_dir / "pictures" / f"survey{survey}-event{number:06d}.png"
            maps = (velocity[0], uncertainty[0])
            heard = sorted(event.latents)
            if self._pictures.qsize() < PICTURES_WAITING:
                self._pictures.put(partial(self._draw_picture, path, maps, decoder.acquisition, heard))
            else:
                # A picture can be drawn from the store at any time; decoding must not wait for it.
                self._log.write("picture_skipped", survey=survey, event=number)

    def _draw(self) -> None:
        while (job := self._pictures.get()) is not None:
            job()

    def _draw_picture(
        self, path: Path, maps: tuple[np.ndarray, np.ndarray], acquisition: Acquisition, heard: list[int]
    ) -> None:
        from central.render import draw_map

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_map(path, *maps, acquisition, heard, title=path.stem)
        except Exception as error:
            self._log.write("picture_failed", path=str(path), reason=repr(error))


def _software() -> dict[str, str]:
    try:
        return {"epic-fwi": metadata.version("epic-fwi")}
    except metadata.PackageNotFoundError:
        return {}
