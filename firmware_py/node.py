"""The device's loop: record, encode, spool, send, and send again until the centre has it.

A record is on the disk before it goes out and stays there until it is acknowledged, so neither a power
cut nor a dead link loses it. One thread: encoding takes about a millisecond.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from firmware_py import packet
from firmware_py.bundle import Bundle, BundleError, load_bundle
from firmware_py.compand import GatherError
from firmware_py.config import NodeConfig
from firmware_py.encoder import Encoder
from firmware_py.keys import read_curve_keys, read_secret
from firmware_py.link import Link
from firmware_py.link_stream import Seal, StreamLink
from firmware_py.link_zmq import ZmqLink
from firmware_py.log import Log, now_us
from firmware_py.port import SerialPort, TcpPort, split_endpoint
from firmware_py.rate import Rate, RateError, pack
from firmware_py.seal import DOWNLINK, UPLINK, Crc, Mac
from firmware_py.source import FileSource, FolderSource, Recording, Selection
from firmware_py.spool import Spool
from firmware_py.supervisor import Supervisor
from firmware_py.talker import Talker
from firmware_py.window import Window

IDLE_S = 0.05
# In the spool: the bytes a latent that the centre has set, 0 for none.
SET_BYTES = "latent_bytes"


def select_receivers(config: NodeConfig, bundle: Bundle) -> Selection:
    """Which receivers of the bundle's survey this device records. Raises ``BundleError``."""
    try:
        survey = bundle.manifest["acquisition"]
        n_receivers = len(survey["receiver_cells"])
        shape = (len(survey["source_cells"]), int(survey["n_time"]), n_receivers)
        groups = [tuple(int(r) for r in group) for group in survey["device_receivers"]]
        if not all(groups):
            raise ValueError("a device without receivers")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.folder}: the manifest's acquisition is not whole ({error!r}); convert again"
        ) from None
    chosen = config.node.receivers
    if not chosen:
        if config.node.device >= len(groups):
            raise BundleError(
                f"{bundle.folder}: made for devices 0 to {len(groups) - 1}, this is device "
                f"{config.node.device}; give [node] receivers, or mend [node] device"
            )
        chosen = groups[config.node.device]
    elif len(chosen) == 2:
        if chosen[0] > chosen[1]:
            raise BundleError(f"[node] receivers: expected [first, last], got {list(chosen)}; swap them")
        chosen = tuple(range(chosen[0], chosen[1] + 1))
    outside = min(chosen) < 0 or max(chosen) >= n_receivers
    if outside or len(set(chosen)) < len(chosen) or len(chosen) > bundle.width:
        raise BundleError(
            f"[node] receivers: expected at most {bundle.width} of 0 to {n_receivers - 1}, each once, "
            f"got {len(chosen)} from {min(chosen)} to {max(chosen)}"
        )
    return Selection(shape, chosen)


def open_source(config: NodeConfig, selection: Selection, position: int) -> FileSource | FolderSource:
    """The configured source; a replay goes on at ``position``. Raises ``GatherError``."""
    source = config.source
    if source.kind == "files":
        return FileSource(list(source.paths), selection, source.interval_s, source.limit, position)
    return FolderSource(source.path, selection, source.poll_s)


def open_link(config: NodeConfig) -> Link:
    """The configured link, with keys unless configured without. Raises ``LinkError``."""
    link = config.link
    if link.kind == "zmq":
        curve = None
        if link.server_key and link.public_key and link.secret_key:
            curve = read_curve_keys(link.server_key, link.public_key, link.secret_key)
        return ZmqLink(link.endpoint, curve)
    seals: tuple[Seal, Seal] = (Crc(), Crc())
    if link.secret:
        secret = read_secret(link.secret)
        seals = (Mac(secret, UPLINK), Mac(secret, DOWNLINK))
    if link.kind == "tcp":
        split_endpoint(link.endpoint)
        return StreamLink(partial(TcpPort.connect, link.endpoint), *seals)
    # 8N1: ten bits a byte.
    return StreamLink(partial(SerialPort, link.endpoint, link.baud), *seals, bytes_per_s=link.baud / 10)


class Node:
    """One device. ``run`` returns when stopped, or when drained if configured so."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.bundle = load_bundle(config.node.bundle)
        self.encoder = Encoder(self.bundle, config.node.accelerator)
        selection = select_receivers(config, self.bundle)
        # A state folder that was lost must not start again at boot 1: the centre would take new records
        # for those it has, and acknowledge them unread. The clock is past every boot counted up before.
        self.spool = Spool(
            config.node.state_dir / "spool.sqlite",
            config.node.spool_records,
            first_boot=int(time.time()),
            device=config.node.device,
        )
        self.source = open_source(config, selection, self.spool.counter("position"))
        self.log = Log(config.run.log)
        self.link = open_link(config)
        self.talkers: list[Talker] = []
        self.stopping = False
        self.refusals: list[str] = []
        self._fault = ""
        self._recorded = 0
        self._acknowledged = 0
        # (boot, sequence); before the first, of no boot.
        self._newest_acknowledged = (0, 0)
        self._encode_s: float | None = None
        self.rate = Rate(self.bundle.coding.latent, config.node.bits)
        self.window = Window(self.spool, config.link.window, config.link.resend_s)

    def stop(self, *_: object) -> None:
        """Ask ``run`` to end after its current step (a signal handler)."""
        self.stopping = True

    def run(self) -> dict[str, Any]:
        """Record and send until stopped or drained; returns the statistics that also end the log.

        Raises ``GatherError`` for a replayed file that cannot be encoded, ``SpoolError`` when records cannot
        be kept. ``refusals`` holds the centre's reason for each record that it refused.
        """
        self.log.write(
            "started",
            device=self.config.node.device,
            boot=self.spool.boot,
            model_hash=self.bundle.model_hash.hex(),
            waiting=len(self.spool),
        )
        self._choose_rate()
        supervisor = Supervisor()
        try:
            while not self.stopping:
                supervisor.alive(time.monotonic())
                recording = self.source.poll() if self._has_room() else None
                if recording is not None:
                    self._record(recording)
                self._send_waiting()
                self._talk()
                self._listen(0.0 if recording is not None else IDLE_S)
                if self.config.run.exit_when_drained and self.source.exhausted and not len(self.spool):
                    break
        finally:
            statistics = self._close()
        return statistics

    def set_rate(self, latent_bytes: int) -> None:
        """Send latents of so many bytes from the next recording on, as the centre asks, also after a restart; 0
        goes back to the configuration's rate. What this model cannot is logged, and changes nothing.

        Raises ``SpoolError``.
        """
        if latent_bytes != self.spool.counter(SET_BYTES):
            self.spool.keep(SET_BYTES, latent_bytes)
            self._choose_rate()

    def _choose_rate(self) -> None:
        coding = self.bundle.coding
        self.rate = Rate(coding.latent, self.config.node.bits)
        if latent_bytes := self.spool.counter(SET_BYTES):
            try:
                self.rate = coding.rate(latent_bytes)
            except RateError as error:
                # Kept all the same: an update may bring a model that can.
                self.log.write("rate_refused", model=self.bundle.name, reason=f"set by the centre: {error}")
        self.log.write(
            "rate", values=self.rate.values, bits=self.rate.bits, latent_bytes=self.rate.payload_bytes
        )

    def status(self) -> dict[str, Any]:
        """What a health record says of this node: fields of ``health_messages.Health``."""
        next_sequence = self._recorded + 1
        oldest = self.spool.waiting(1)
        boot, sequence = self._newest_acknowledged
        return {
            "waiting": len(self.spool),
            "dropped": self.spool.counter("dropped"),
            "refused": len(self.refusals),
            "next_sequence": next_sequence,
            "acknowledged_boot": boot or None,
            "acknowledged_sequence": sequence or None,
            "first_boot": oldest[0].boot if oldest else self.spool.boot,
            "first_sequence": oldest[0].sequence if oldest else next_sequence,
            "encode_us": None if self._encode_s is None else int(self._encode_s * 1e6),
            "latent_bytes": self.rate.payload_bytes,
        }

    def _has_room(self) -> bool:
        """A replay waits for room in the spool, as it can; a field recording drops the oldest record."""
        replay = self.config.source.kind == "files"
        return not replay or len(self.spool) < self.config.node.spool_records

    def _record(self, recording: Recording) -> None:
        started = time.perf_counter()
        recorded_us = now_us()
        try:
            latent = self.encoder.encode_recording(recording.part)
        except GatherError as error:
            self.log.write("rejected", event=recording.event, reason=str(error))
            self.source.reject(recording, str(error))
            return
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
        self.spool.append(sequence, packet.encode_record(record), advance=1)
        self.window.recorded(sequence)
        self.source.done(recording)
        self._recorded += 1
        self.log.write(
            "recorded",
            event=recording.event,
            sequence=sequence,
            recorded_us=recorded_us,
            encode_s=round(encode_s, 6),
            network_s=round(self.encoder.network_s, 6),
        )

    def _send_waiting(self) -> None:
        """Send what is new within the window, and what has waited too long for its acknowledgement."""
        for spooled in self.window.due():
            # Before it goes: the centre may have it before the log has.
            sent_us = now_us()
            if not self.link.send(spooled.data):
                self._report_fault()
                return
            again = self.window.sent(spooled)
            self.log.write("sent", boot=spooled.boot, sequence=spooled.sequence, again=again, sent_us=sent_us)

    def _report_fault(self) -> None:
        fault = self.link.statistics.fault
        if fault and fault != self._fault:
            self.log.write("link_down", reason=fault)
        self._fault = fault

    def _talk(self) -> None:
        for talker in self.talkers:
            record = talker.say(time.monotonic())
            # What cannot go now is not kept: the talker says it again, or something newer.
            if record is not None and self.link.send(packet.encode_record(record)):
                self.log.write("said", type=record.type, bytes=len(record.payload))

    def _listen(self, timeout_s: float) -> None:
        """Take in what the centre says; waits only for the first of it."""
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
                    for talker in self.talkers:
                        talker.hear(record, time.monotonic())
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
            self.refusals.append(reason)
            self.log.write("refused", boot=record.boot, sequence=record.sequence, reason=reason)

    def _close(self) -> dict[str, Any]:
        self.link.close()
        statistics = {
            "device": self.config.node.device,
            "boot": self.spool.boot,
            "recorded": self._recorded,
            "acknowledged": self._acknowledged,
            "refused": len(self.refusals),
            "waiting": len(self.spool),
            "dropped": self.spool.counter("dropped"),
            **vars(self.link.statistics),
        }
        self.log.write("statistics", **statistics)
        self.spool.close()
        self.log.close()
        return statistics
