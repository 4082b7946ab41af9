"""Run the device's loop: record, encode, spool, send, and repeat until acknowledged.

A record is written to the spool, sent, and synced to the disk, where it stays until it is acknowledged. Neither a power
cut nor a dead link loses an event, because its recording is moved only after the sync. One thread suffices: encoding
takes about a millisecond.
"""

from __future__ import annotations

import time
from typing import Any

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import GatherError, unusual_loudness
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Range
from firmware_py.protocol.rate import Rate, RateError, pack
from firmware_py.runtime.config import NodeConfig
from firmware_py.runtime.control_handler import ControlHandler
from firmware_py.runtime.factory import open_link, open_source, select_receivers
from firmware_py.runtime.log import Log, now_us
from firmware_py.runtime.sd_notify import Supervisor
from firmware_py.sources.recordings import FileSource, Recording
from firmware_py.storage.spool import Spool
from firmware_py.storage.window import Window

IDLE_S = 0.05
# Earliest valid clock (2025), seconds since 1970; an earlier one was not set since power-on.
EARLIEST_CLOCK_S = 1_735_689_600
# Interval of checks that the spool's file still exists, seconds.
LOOK_S = 1.0
# Spool counter: bytes per latent that the centre has set, 0 for none.
SET_BYTES = "latent_bytes"
# Spool counter: identifies the replayed files that ``position`` refers to.
REPLAYED = "replayed"


def _clock_s() -> int:
    """Return seconds since 1970, or 0 while the clock is not set."""
    return _if_set(int(time.time()))


def _if_set(clock_s: int) -> int:
    """Return the time, or 0 if no start can have it as its number."""
    return clock_s if EARLIEST_CLOCK_S <= clock_s < packet.MAX_BOOT else 0


class Node:
    """Device. ``run`` returns when stopped, or when drained if configured so."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.bundle = load_bundle(config.node.bundle)
        self.encoder = Encoder(self.bundle, config.node.accelerator)
        self.selection = selection = select_receivers(config, self.bundle)
        self.log = Log(config.run.log)
        self.source = open_source(config, selection, self.log.write)
        # Before the spool, which needs disk space as well.
        self.source.make_room()
        # A lost state folder must not restart at boot 1: the centre would take new records for stored ones and
        # acknowledge them unread. The clock exceeds every earlier boot number. Without a clock this start has no number
        # yet, and nothing is recorded (`_is_numbered`).
        self.spool = Spool(
            config.node.state_dir / "spool.sqlite",
            config.node.spool_records,
            first_boot=_clock_s(),
            device=config.node.device,
            survey=config.node.survey,
        )
        if self.spool.damaged:
            self.log.write("spool_damaged", reason=self.spool.damaged)
        if isinstance(self.source, FileSource):
            self._go_on(self.source)
        self.link = open_link(config)
        # Shared by all handlers' records; `number_start` changes its boot.
        self.control_header = packet.Record(
            packet.UPDATE,
            config.node.device,
            config.node.survey,
            self.spool.boot,
            0,
            model_hash=self.bundle.model_hash,
        )
        self.handlers: list[ControlHandler] = []
        self.stopping = False
        self.refused = 0
        self.refusal = ""
        self._fault = ""
        self._key_rejected = False
        self._loudness_reported = False
        self._recorded = 0
        self._acknowledged = 0
        # (boot, sequence), also of earlier starts.
        self._newest_acknowledged = self.spool.newest_acknowledged()
        self._resent = 0
        self._not_kept = 0
        self._encode_s: float | None = None
        self.rate = Rate(self.bundle.coding.latent, config.node.bits)
        self.window = Window(self.spool, config.link.window, config.link.resend_s)

    def latents_waiting(self) -> bool:
        """Return True while a latent is not acknowledged."""
        return len(self.spool) > 0

    def stop(self, *_: object) -> None:
        """Ask ``run`` to return after its current step (signal handler)."""
        self.stopping = True

    def run(self) -> dict[str, Any]:
        """Record and send until stopped or drained.

        Returns:
            The statistics that also end the log. ``refused`` counts refused records, ``refusal`` is the last reason.

        Raises:
            GatherError: A replayed file cannot be encoded.
            SpoolError: Records cannot be stored.
        """
        self.log.write(
            "started",
            device=self.config.node.device,
            boot=self.spool.boot,
            model_hash=self.bundle.model_hash.hex(),
            waiting=len(self.spool),
            position=self.source.position,
        )
        self._choose_rate()
        if not self._is_numbered():
            self.log.write(
                "no_clock",
                reason="the state is fresh and the clock is not set; recordings wait for NTP or the centre's time",
            )
        supervisor = Supervisor()
        look_s = 0.0
        try:
            while not self.stopping:
                supervisor.alive(time.monotonic())
                if time.monotonic() >= look_s:
                    self.spool.check_file()
                    look_s = time.monotonic() + LOOK_S
                recording = self.source.poll() if self._is_numbered() and self._has_room() else None
                spooled = recording if recording is not None and self._record(recording) else None
                self._send_waiting()
                if spooled is not None:
                    # The link sends the record meanwhile. No answer is read before the sync.
                    self.spool.sync()
                    self.source.done(spooled)
                    self._report_loudness(spooled)
                self._talk()
                self._listen(0.0 if recording is not None else IDLE_S)
                self._report_fault()
                if self.config.run.exit_when_drained and self.source.exhausted and not len(self.spool):
                    break
        finally:
            statistics = self._close()
        return statistics

    def set_rate(self, latent_bytes: int) -> None:
        """Set the length of latents in bytes, from the next recording on and across restarts; 0 restores the configured
        rate.

        A rate that this model does not support is logged and ignored.

        Raises:
            SpoolError: The rate cannot be stored.
        """
        if latent_bytes != self.spool.counter(SET_BYTES):
            self.spool.keep(SET_BYTES, latent_bytes)
            self._choose_rate()

    def number_start(self, newest_boot: int, centre_us: int) -> None:
        """Renumber this start after the newest boot that the centre knows, if it is behind or has no clock.

        Args:
            newest_boot: Newest boot of this device that the centre knows; 0 unless this one is behind.
            centre_us: The centre's clock, microseconds since 1970.

        Raises:
            PacketError: The centre knows the last possible number.
            SpoolError: The number cannot be stored.
        """
        boot = self.spool.boot
        if boot < EARLIEST_CLOCK_S:
            boot = max(boot, _if_set(centre_us // 1_000_000))
        if newest_boot >= boot:
            boot = newest_boot + 1
        if boot > packet.MAX_BOOT:
            raise packet.PacketError(
                f"the centre knows boot {newest_boot} of this device, the last one; run there: epic central devices "
                f"forget {self.config.node.device}"
            )
        self._set_boot(boot)

    def send_again(self, ranges: list[Range]) -> None:
        """Send acknowledged records that the centre lost and asks for, as far as they are still here.

        Raises:
            SpoolError: The disk failed.
        """
        for boot, first, last in ranges:
            again, not_kept = self.spool.send_again(boot, first, last)
            self._resent += again
            self._not_kept += not_kept
            self.log.write("asked_again", boot=boot, first=first, last=last, resent=again, not_kept=not_kept)

    def _is_numbered(self) -> bool:
        """Return True if this start has a unique number; take one from the clock once that is set."""
        if self.spool.boot < EARLIEST_CLOCK_S:
            self._set_boot(max(self.spool.boot, _clock_s()))
        return self.spool.boot >= EARLIEST_CLOCK_S

    def _set_boot(self, boot: int) -> None:
        if boot == self.spool.boot:
            return
        self.log.write("boot_changed", boot=boot, previous=self.spool.boot)
        self.spool.set_boot(boot)
        self.control_header.boot = boot
        self.window.restart()

    def _choose_rate(self) -> None:
        coding = self.bundle.coding
        self.rate = Rate(coding.latent, self.config.node.bits)
        if latent_bytes := self.spool.counter(SET_BYTES):
            try:
                self.rate = coding.rate(latent_bytes)
            except RateError as error:
                # Store the rate anyway: an update may bring a model that supports it.
                self.log.write("rate_refused", model=self.bundle.name, reason=f"set by the centre: {error}")
        self.log.write(
            "rate", values=self.rate.values, bits=self.rate.bits, latent_bytes=self.rate.payload_bytes
        )

    def status(self) -> dict[str, Any]:
        """Return this node's fields of ``health_messages.Health``."""
        next_sequence = self._recorded + 1
        oldest = self.spool.waiting(1)
        boot, sequence = self._newest_acknowledged
        return {
            "waiting": len(self.spool),
            "dropped": self.spool.counter("dropped"),
            "refused": self.refused,
            "next_sequence": next_sequence,
            "acknowledged_boot": boot or None,
            "acknowledged_sequence": sequence or None,
            "first_boot": oldest[0].boot if oldest else self.spool.boot,
            "first_sequence": oldest[0].sequence if oldest else next_sequence,
            "encode_us": None if self._encode_s is None else int(self._encode_s * 1e6),
            "latent_bytes": self.rate.payload_bytes,
            "rejected": self.source.rejected,
            "rejection": self.source.rejection or None,
            "kept_recordings": self.source.kept(),
            "resent": self._resent,
            "not_kept": self._not_kept,
        }

    def _go_on(self, replay: FileSource) -> None:
        """Resume the replay of these files; a replay of other files begins with its first event."""
        if self.spool.counter(REPLAYED) != replay.files:
            self.spool.keep("position", 0)
            self.spool.keep(REPLAYED, replay.files)
        replay.position = self.spool.counter("position")

    def _has_room(self) -> bool:
        """Return True if the spool can take a record. A replay waits for space; a field recording drops the oldest
        record.
        """
        return not isinstance(self.source, FileSource) or len(self.spool) < self.config.node.spool_records

    def _record(self, recording: Recording) -> bool:
        """Encode a recording and append it to the spool, without a sync; return False if it was rejected."""
        started = time.perf_counter()
        recorded_us = now_us()
        try:
            latent = self.encoder.encode_recording(recording.part)
        except GatherError as error:
            self.source.reject(recording, str(error))
            return False
        encode_s = self._encode_s = time.perf_counter() - started
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
            pack(latent, self.rate),
        )
        replayed = isinstance(self.source, FileSource)
        self.spool.append(sequence, packet.encode_record(record), advance=1 if replayed else 0)
        self.window.recorded(sequence)
        self._recorded += 1
        self.log.write(
            "recorded",
            event=recording.event,
            sequence=sequence,
            recorded_us=recorded_us,
            encode_s=round(encode_s, 6),
            network_s=round(self.encoder.network_s, 6),
        )
        return True

    def _report_loudness(self, recording: Recording) -> None:
        """Log a recording of unusual loudness, once until one is as expected again."""
        reason = unusual_loudness(recording.part, self.bundle.companding)
        if bool(reason) != self._loudness_reported:
            self._loudness_reported = bool(reason)
            self.log.write(
                "unusual_loudness" if reason else "usual_loudness",
                event=recording.event,
                **({"reason": reason} if reason else {}),
            )

    def _send_waiting(self) -> None:
        """Send new records within the window, and repeat those whose acknowledgement is overdue."""
        for spooled in self.window.due():
            # Log first: the centre might otherwise have the record before the log does.
            sent_us = now_us()
            if not self.link.send(spooled.data):
                return
            again = self.window.sent(spooled)
            self.log.write("sent", boot=spooled.boot, sequence=spooled.sequence, again=again, sent_us=sent_us)

    def _report_fault(self) -> None:
        """Log an outage once, with its first reason, once more if the centre rejects the key, and its end.

        Later attempts may fail for other reasons.
        """
        statistics = self.link.statistics
        if statistics.fault and (not self._fault or statistics.key_rejected > self._key_rejected):
            self.log.write("link_down", reason=statistics.fault)
        elif self._fault and not statistics.fault:
            self.log.write("link_up")
        self._fault, self._key_rejected = statistics.fault, statistics.key_rejected

    def _talk(self) -> None:
        for handler in self.handlers:
            record = handler.poll(time.monotonic())
            # A message that cannot be sent now is discarded; the handler sends it again, or a newer one.
            if record is not None and self.link.send(packet.encode_record(record)):
                self.log.write("control_sent", type=record.type, bytes=len(record.payload))

    def _listen(self, timeout_s: float) -> None:
        """Handle messages from the centre; block only for the first one."""
        while (data := self.link.receive(timeout_s)) is not None:
            timeout_s = 0.0
            try:
                record = packet.decode_record(data)
                if record.device != self.config.node.device:
                    raise packet.PacketError(f"answer for device {record.device}")
                if record.type == packet.ACK:
                    self._forget(record.boot, packet.acknowledged_sequences(record))
                elif record.type == packet.REFUSAL:
                    self._refused(record)
                else:
                    for handler in self.handlers:
                        handler.handle(record, time.monotonic())
            except packet.PacketError as error:
                self.log.write("ignored", reason=str(error))

    def _forget(self, boot: int, sequences: tuple[int, ...]) -> None:
        for sequence in self.spool.acknowledge(boot, sequences):
            self._acknowledged += 1
            self._newest_acknowledged = max(self._newest_acknowledged, (boot, sequence))
            self.window.answered(boot, sequence)
            self.log.write("acknowledged", boot=boot, sequence=sequence)

    def _refused(self, record: packet.Record) -> None:
        reason = bytes(record.payload).decode("utf-8", "replace")
        self.window.answered(record.boot, record.sequence)
        if self.spool.set_aside(record.boot, record.sequence, reason):
            self.refused += 1
            self.refusal = reason
            self.log.write("refused", boot=record.boot, sequence=record.sequence, reason=reason)

    def _close(self) -> dict[str, Any]:
        for handler in self.handlers:
            handler.close()
        self.link.close()
        statistics = {
            "device": self.config.node.device,
            "boot": self.spool.boot,
            "recorded": self._recorded,
            "acknowledged": self._acknowledged,
            "refused": self.refused,
            "rejected": self.source.rejected,
            "waiting": len(self.spool),
            "dropped": self.spool.counter("dropped"),
            **vars(self.link.statistics),
        }
        self.log.write("statistics", **statistics)
        self.spool.close()
        self.log.close()
        return statistics
