"""The device's loop: record, encode, spool, send, and send again until the centre has it.

A record is on the disk before it goes out and stays there until it is acknowledged, so neither a power
cut nor a dead link loses it. One thread: encoding takes about a millisecond.
"""

from __future__ import annotations

import time

from firmware_py import packet
from firmware_py.bundle import Bundle, BundleError, load_bundle
from firmware_py.compand import GatherError
from firmware_py.config import NodeConfig
from firmware_py.encoder import Encoder
from firmware_py.link import Link
from firmware_py.link_zmq import ZmqLink
from firmware_py.log import Log, now_us
from firmware_py.source import FileSource, FolderSource, Recording, Selection
from firmware_py.spool import Spool

RESEND_MAX_S = 30.0
IDLE_S = 0.05


class RefusedError(RuntimeError):
    """The centre refused records of this device."""


def select_receivers(config: NodeConfig, bundle: Bundle) -> Selection:
    """Which receivers of the bundle's survey this device records. Raises ``BundleError``."""
    survey = bundle.manifest["acquisition"]
    n_receivers = len(survey["receiver_cells"])
    shape = (len(survey["source_cells"]), int(survey["n_time"]), n_receivers)
    groups = survey["device_receivers"]
    chosen = config.node.receivers
    if not chosen:
        if config.node.device >= len(groups):
            raise BundleError(
                f"{bundle.folder}: made for devices 0 to {len(groups) - 1}, this is device "
                f"{config.node.device}; give [node] receivers, or mend [node] device"
            )
        chosen = tuple(groups[config.node.device])
    elif len(chosen) == 2 and chosen[0] < chosen[1]:
        chosen = tuple(range(chosen[0], chosen[1] + 1))
    if min(chosen) < 0 or max(chosen) >= n_receivers or len(chosen) > bundle.width:
        raise BundleError(
            f"[node] receivers: expected at most {bundle.width} of 0 to {n_receivers - 1}, "
            f"got {len(chosen)} from {min(chosen)} to {max(chosen)}"
        )
    return Selection(shape, chosen)


class Node:
    """One device. ``run`` returns when stopped, or when drained if configured so."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.bundle = load_bundle(config.node.bundle)
        self.encoder = Encoder(self.bundle)
        selection = select_receivers(config, self.bundle)
        self.spool = Spool(config.node.state_dir / "spool.sqlite", config.node.spool_records)
        self.source: FileSource | FolderSource
        if config.source.kind == "files":
            self.source = FileSource(
                list(config.source.paths),
                selection,
                config.source.interval_s,
                config.source.limit,
                self.spool.counter("position"),
            )
        else:
            self.source = FolderSource(config.source.path, selection, config.source.poll_s)
        self.log = Log(config.run.log)
        self.link: Link = ZmqLink(config.link.endpoint, f"epic-{config.node.device}")
        self.stopping = False
        self.refusals: list[str] = []
        self._acknowledged = 0
        # (boot, sequence) -> (time of the last sending, seconds to wait for its acknowledgement)
        self._in_flight: dict[tuple[int, int], tuple[float, float]] = {}

    def stop(self, *_: object) -> None:
        """Ask ``run`` to end after its current step (a signal handler)."""
        self.stopping = True

    def run(self) -> None:
        """Record and send until stopped or drained.

        Raises ``GatherError`` for a replayed file that cannot be encoded, ``SpoolError`` when records cannot
        be kept, ``RefusedError`` at the end when the centre refused any.
        """
        self.log.write(
            "started",
            device=self.config.node.device,
            boot=self.spool.boot,
            model_hash=self.bundle.model_hash.hex(),
            waiting=len(self.spool),
        )
        try:
            while not self.stopping:
                recording = self.source.poll() if len(self._in_flight) < self.config.link.window else None
                if recording is not None:
                    self._record(recording)
                self._send_waiting()
                self._listen(0.0 if recording is not None else IDLE_S)
                if self.config.run.exit_when_drained and self.source.exhausted and not len(self.spool):
                    break
        finally:
            self._close()
        if self.refusals:
            raise RefusedError(
                f"the centre refused {len(self.refusals)} of this device's records: {self.refusals[0]}"
            )

    def _record(self, recording: Recording) -> None:
        started = time.perf_counter()
        recorded_us = now_us()
        try:
            latent = self.encoder.encode_recording(recording.part)
        except GatherError as error:
            self.log.write("rejected", event=recording.event, reason=str(error))
            self.source.reject(recording, str(error))
            return
        encode_s = time.perf_counter() - started
        sequence = self.spool.next_sequence()
        record = packet.Record(
            packet.LATENT,
            self.config.node.device,
            self.config.node.survey,
            self.spool.boot,
            sequence,
            recording.event,
            recording.sample_time_us,
            self.bundle.model_hash,
            latent.tobytes(),
        )
        self.spool.append(sequence, packet.encode_record(record), advance=1)
        self.source.done(recording)
        self.log.write(
            "recorded",
            event=recording.event,
            sequence=sequence,
            recorded_us=recorded_us,
            encode_s=round(encode_s, 6),
        )

    def _send_waiting(self) -> None:
        """Send what is new within the window, and what has waited too long for its acknowledgement."""
        for spooled in self.spool.waiting(self.config.link.window):
            key = (spooled.boot, spooled.sequence)
            sent = self._in_flight.get(key)
            now = time.monotonic()
            if sent and now - sent[0] < sent[1]:
                continue
            if not self.link.send(spooled.data):
                return
            wait_s = min(2 * sent[1], RESEND_MAX_S) if sent else self.config.link.resend_s
            self._in_flight[key] = (now, wait_s)
            self.log.write("sent", boot=key[0], sequence=key[1], again=sent is not None)

    def _listen(self, timeout_s: float) -> None:
        """Take in what the centre says; waits only for the first of it."""
        while (data := self.link.receive(timeout_s)) is not None:
            timeout_s = 0.0
            try:
                record = packet.decode_record(data)
                if record.type == packet.ACK:
                    self._forget(record.boot, packet.acknowledged_sequences(record))
                elif record.type == packet.REFUSAL:
                    self._refused(record)
            except packet.PacketError as error:
                self.log.write("ignored", reason=str(error))

    def _forget(self, boot: int, sequences: tuple[int, ...]) -> None:
        self._acknowledged += self.spool.acknowledge(boot, sequences)
        for sequence in sequences:
            if self._in_flight.pop((boot, sequence), None):
                self.log.write("acknowledged", boot=boot, sequence=sequence)

    def _refused(self, record: packet.Record) -> None:
        reason = bytes(record.payload).decode("utf-8", "replace")
        self._in_flight.pop((record.boot, record.sequence), None)
        if self.spool.set_aside(record.boot, record.sequence, reason):
            self.refusals.append(reason)
            self.log.write("refused", boot=record.boot, sequence=record.sequence, reason=reason)

    def _close(self) -> None:
        self.link.close()
        statistics = self.link.statistics
        self.log.write(
            "statistics",
            **vars(statistics),
            acknowledged=self._acknowledged,
            refused=len(self.refusals),
            waiting=len(self.spool),
            dropped=self.spool.counter("dropped"),
        )
        self.spool.close()
        self.log.close()
