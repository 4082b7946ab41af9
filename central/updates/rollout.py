"""Roll out a new bundle over the devices' links: to canaries first, then to all; any failure stops it.

Devices ask and the centre answers (``firmware_py.protocol.update_messages``). A model's decoder is loaded before any
device is offered the model. Earlier decoders stay loaded for records that are still to come.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from central.config import ModelSection
from central.pipeline.decoders import MapDecoder, released_sha256
from central.storage.database import StoreError
from central.updates.rollout_store import (
    ALL,
    CANARY,
    DOWNLOADING,
    OFFERED,
    STOPPED,
    DeviceState,
    Key,
    RolloutError,
    RolloutStore,
    StoredRollout,
    model_section,
    read_archive,
)
from firmware_py.inference.bundle import load_bundle
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health
from firmware_py.protocol.update_messages import (
    DECLINED,
    FAILED,
    RUNNING,
    Chunk,
    ChunkRequest,
    Message,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)
from firmware_py.runtime.log import Log, now_us
from firmware_py.updates.archive import ArchiveError, split_archive
from physics.acquisition import Acquisition

POLL_S = 1.0
# Seconds for which a device that has asked counts as busy with the update and gets no new offer.
BUSY_S = 60.0


@dataclass
class _Active:
    """Active rollout; ``archive`` is the complete archive, 100 to 300 kB."""

    stored: StoredRollout
    archive: bytes
    offer: Offer
    acquisition: Acquisition


class Rollouts:
    """Update service of the centre.

    The receiver calls ``handle`` and ``offer``; ``watch`` needs a thread. ``load`` reads the decoder of a released
    model, and ``adopt(model_hash, decoder)`` activates it. ``models`` are the active models by model hash.
    """

    def __init__(
        self,
        data_dir: Path,
        models: Mapping[bytes, MapDecoder],
        load: Callable[[ModelSection], tuple[bytes, MapDecoder]],
        adopt: Callable[[bytes, MapDecoder], None],
        log: Log,
    ) -> None:
        self._data_dir = data_dir
        self._models = models
        self._load = load
        self._adopt = adopt
        self._log = log
        self._lock = threading.Lock()
        self._active: _Active | None = None
        self._changed: set[Key] = set()
        self._stopping: str | None = None
        self._seen = 0

    def restore(self) -> None:
        """Load the decoders of all rollouts whose records may still arrive; call it before the centre starts."""
        store = RolloutStore(self._data_dir, create=True)
        try:
            found = store.rollouts()
            for newest in found[:1]:
                self._take_up(newest, store)
            in_use = store.models_in_use() if found[1:] else set()
            for former in found[1:]:
                if former.model_hash in in_use:
                    try:
                        self._load_model(former)
                    except RolloutError as error:
                        self._log.write("model_missing", version=former.version, reason=str(error))
        finally:
            store.close()

    def watch(self, stopping: threading.Event) -> None:
        """Start new rollouts, store device states and promote from canaries to all, until ``stopping`` is set."""
        store = RolloutStore(self._data_dir, create=True)
        try:
            while not stopping.wait(POLL_S):
                try:
                    self._look(store)
                except StoreError as error:
                    # Retried in the next pass.
                    self._log.write("rollout_commit_failed", reason=str(error))
            self._keep(store)
        finally:
            store.close()

    def handle(self, record: packet.Record, wire_bytes: int) -> list[packet.Record]:
        """Return the answers to an UPDATE record (a ``receiver.Handler``)."""
        try:
            message = decode_message(record.payload)
        except packet.PacketError as error:
            self._log.write("damaged", device=record.device, reason=str(error))
            return []
        with self._lock:
            if isinstance(message, ChunkRequest):
                answers = [self._chunk(record, message)]
            elif isinstance(message, Report):
                answers = self._reported(record, message)
            else:
                answers = []
        return [_answer(record, answer) for answer in answers]

    def offer(self, record: packet.Record) -> packet.Record | None:
        """Return the offer to attach to the answer to ``record`` (hello, health), or None."""
        with self._lock:
            offer = self._offer_to((record.survey, record.device), record.model_hash)
        return _answer(record, offer) if offer else None

    def check_health(self, record: packet.Record, health: Health) -> None:
        """Stop the rollout when a device rejects more recordings with the new model than it records."""
        key = (record.survey, record.device)
        with self._lock:
            active = self._active
            if not active or record.model_hash != active.stored.model_hash:
                return
            device = active.stored.devices.get(key)
            recorded = health.next_sequence - 1
            if device and device.state == RUNNING and (health.rejected or 0) > recorded:
                self._fail(active, key, f"rejects its recordings: {health.rejection or 'no reason given'}")

    def _fail(self, active: _Active, key: Key, reason: str) -> None:
        """A device has failed, which stops the rollout."""
        self._set(key, FAILED, reason)
        reason = f"device {key[1]} of survey {key[0]}: {reason}"
        active.stored.stage, active.stored.reason = STOPPED, reason
        self._stopping = reason

    def _offer_to(self, key: Key, model_hash: bytes) -> Offer | None:
        """The offer to a device that runs ``model_hash``; one that records another survey is passed over."""
        active = self._active
        if not active or not self._is_admitted(active.stored, key):
            return None
        current = self._models.get(model_hash)
        if current and (differing := active.acquisition.differences(current.acquisition)):
            if key not in active.stored.devices:
                self._set(key, DECLINED, f"records another survey: {', '.join(differing)} differ")
            return None
        device = active.stored.devices.get(key)
        if device:
            busy = device.state == DOWNLOADING and now_us() - device.changed_us < BUSY_S * 1e6
            if busy or device.state not in (OFFERED, DOWNLOADING):
                return None
        else:
            self._set(key, OFFERED)
        return active.offer

    @staticmethod
    def _is_admitted(rollout: StoredRollout, key: Key) -> bool:
        """Return True if it is this device's turn; the first devices that ask become canaries."""
        if rollout.stage == ALL or key in rollout.devices:
            return rollout.stage in (CANARY, ALL)
        canaries = [device for device in rollout.devices.values() if device.state != "declined"]
        return rollout.stage == CANARY and len(canaries) < rollout.canaries

    @classmethod
    def _may_report(cls, rollout: StoredRollout, key: Key, state: str) -> bool:
        """Return True if the device was offered the bundle; a device that is passed over has declined it."""
        known = rollout.devices.get(key)
        if state == RUNNING:
            return known is not None or cls._is_admitted(rollout, key)
        return known is not None and (known.state != DECLINED or state == DECLINED)

    def _chunk(self, record: packet.Record, want: ChunkRequest) -> Message:
        key, active = (record.survey, record.device), self._active
        if not active or want.sha256 != active.offer.sha256 or not self._is_admitted(active.stored, key):
            return NotAvailable(want.sha256)
        data = active.archive[want.offset : want.offset + want.length]
        self._set(key, DOWNLOADING, done_bytes=want.offset + len(data))
        return Chunk(want.sha256, want.offset, data)

    def _reported(self, record: packet.Record, report: Report) -> list[Message]:
        key, active = (record.survey, record.device), self._active
        if report.state == RUNNING and record.model_hash not in self._models:
            # No acknowledgement: the device then rolls back to a model that the centre can decode.
            return []
        answers: list[Message] = [ReportAck(report.version)]
        if active and report.version == active.stored.version:
            if not self._may_report(active.stored, key, report.state):
                self._log.write(
                    "update_ignored", survey=key[0], device=key[1], version=report.version, state=report.state
                )
                return answers
            if report.state == FAILED:
                self._fail(active, key, report.reason)
            else:
                total = len(active.archive) if report.state == RUNNING else 0
                self._set(key, report.state, report.reason, total)
        elif active and report.state == RUNNING:
            known = active.stored.devices.get(key)
            if known and known.state in (DOWNLOADING, RUNNING):
                # The device has restarted since with its previous bundle. A failure would have been reported before
                # this.
                self._set(key, OFFERED)
            if offer := self._offer_to(key, record.model_hash):
                answers.append(offer)
        return answers

    def _set(self, key: Key, state: str, reason: str = "", done_bytes: int = 0) -> None:
        assert self._active
        devices = self._active.stored.devices
        known = devices.get(key)
        if known is None or known.state != state:
            version = self._active.stored.version
            self._log.write(
                "update", survey=key[0], device=key[1], version=version, state=state, reason=reason
            )
        devices[key] = DeviceState(state, reason, done_bytes, now_us())
        self._changed.add(key)

    def _look(self, store: RolloutStore) -> None:
        self._keep(store)
        newest = store.newest()
        if newest and newest[0] != self._seen:
            self._take_up(store.rollouts()[0], store)
        elif newest and newest[1] == STOPPED and self._active:
            with self._lock:
                known, self._active.stored.stage = self._active.stored.stage, STOPPED
            if known != STOPPED:
                self._log.write("rollout_stopped", version=newest[0], reason="by the operator")
        self._promote(store)

    def _take_up(self, rollout: StoredRollout, store: RolloutStore) -> None:
        """Load the decoder, then start offering the bundle; a bundle whose decoder cannot be loaded is not offered."""
        self._seen = rollout.version
        with self._lock:
            # States of the previous rollout: a failure to store them must not stop this one.
            self._active, self._stopping = None, None
            self._changed.clear()
        try:
            self._load_model(rollout)
            archive = read_archive(self._data_dir, rollout.version)
            statement, signature, _ = split_archive(archive)
        except (RolloutError, StoreError, ArchiveError) as error:
            store.set_stage(rollout.version, STOPPED, str(error))
            self._log.write("rollout_stopped", version=rollout.version, reason=str(error))
            return
        offer = Offer(rollout.version, hashlib.sha256(archive).digest(), len(archive), statement, signature)
        if store.newest() == (rollout.version, STOPPED):
            # The operator stopped it while the decoder was loading, which takes seconds.
            rollout.stage = STOPPED
        with self._lock:
            acquisition = self._models[rollout.model_hash].acquisition
            self._active = _Active(rollout, archive, offer, acquisition)
        self._log.write("rollout", version=rollout.version, stage=rollout.stage)

    def _load_model(self, rollout: StoredRollout) -> None:
        """Load and activate the decoder of ``rollout``.

        Raises:
            RolloutError: The decoder cannot be loaded.
        """
        section = model_section(self._data_dir, rollout.version)
        try:
            if at_work := self._models.get(rollout.model_hash):
                expected = load_bundle(section.bundle).manifest.get("decoder_sha256")
                if released_sha256(at_work) != expected:
                    raise RolloutError(
                        "another decoder of this encoder is in use; give that one, or retrain both"
                    )
                return
            model_hash, decoder = self._load(section)
        except Exception as error:
            # The decoder's libraries raise arbitrary errors; the centre goes on with its current models.
            raise RolloutError(f"its decoder cannot be loaded: {error}") from None
        self._adopt(model_hash, decoder)
        self._log.write("model_loaded", model_hash=model_hash.hex(), version=rollout.version)

    def _keep(self, store: RolloutStore) -> None:
        with self._lock:
            if not self._active:
                return
            stored = self._active.stored
            changed = {key: stored.devices[key] for key in self._changed}
            stopping = self._stopping
            self._changed.clear()
            self._stopping = None
        try:
            if changed:
                store.keep_states(stored.version, changed)
            if stopping is not None:
                store.set_stage(stored.version, STOPPED, stopping)
                self._log.write("rollout_stopped", version=stored.version, reason=stopping)
        except StoreError:
            with self._lock:
                self._changed |= changed.keys()
                self._stopping = self._stopping or stopping
            raise

    def _promote(self, store: RolloutStore) -> None:
        """Promote to all devices once each canary runs the new model and its newest record is from it."""
        with self._lock:
            if not self._active or self._active.stored.stage != CANARY:
                return
            stored = self._active.stored
            running = [key for key, device in stored.devices.items() if device.state == RUNNING]
        if len(running) < stored.canaries:
            return
        if all(store.has_delivered(key, stored.model_hash) for key in running):
            store.set_stage(stored.version, ALL)
            with self._lock:
                if stored.stage == CANARY:
                    stored.stage = ALL
            self._log.write("rollout", version=stored.version, stage=ALL, canaries=len(running))


def _answer(record: packet.Record, message: Message) -> packet.Record:
    return packet.Record(
        packet.UPDATE,
        record.device,
        record.survey,
        record.boot,
        record.sequence,
        payload=encode_message(message),
    )
