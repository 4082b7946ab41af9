"""Receive records on a ROUTER socket, and commit each one before it is acknowledged."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from central.errors import CentralError
from central.ingest.authentication import OWN_THREAD, CurveAuthenticator
from central.ingest.connection_limits import DEVICE_CONNECTIONS, GATEWAY_CONNECTIONS, Key
from central.ingest.connections import Connections
from central.ingest.traffic import Traffic
from central.security.keys import Identity
from central.storage.database import DamagedStoreError, StoreError
from central.storage.journal import Journal
from central.times import LAST_US
from firmware_py.links.zeromq import HEARTBEAT_MS, MAX_MESSAGE_BYTES, MESSAGE_BYTES, frame_bytes
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding, RateError
from firmware_py.runtime.log import Log, now_us

HIGH_WATER_MARK = 64
GROUP_RECORDS = 256
# In-process endpoint for gateway threads, within the receiver's context.
GATEWAYS = "inproc://gateways"
POLL_MS = 100
# Log lines per kind of refusal and period; keeps a misbehaving device from filling the disk.
LOG_LINES, LOG_S = 100, 10.0
# Handshake timeout; peers without a key are disconnected after it (a handshake is four messages, 0.7 kB).
HANDSHAKE_MS = 10_000
# Number of frames at which a message's connection is shut down and its key suspended; a record is one frame.
MAX_FRAMES = 16
# Time for which a suspended key is not admitted, seconds.
SUSPENDED_S = 60.0
# Interval of checks that the keys of silent connections are still allowed, seconds.
KEYS_CHECK_S = 0.5


# Handler of a control record (hello, health, update). It gets the record and its size in bytes on the wire, and returns
# the centre's answers. It is called on the receiver's thread between two groups, so it must be quick.
Handler = Callable[[packet.Record, int], Iterable[packet.Record]]


class ReceiverError(CentralError, OSError):
    """The receiver cannot bind to its endpoint."""


@dataclass(frozen=True)
class Expected:
    """Expected form of one model's records: ``n_devices`` latents, each a payload of ``coding``."""

    n_devices: int
    coding: Coding


@dataclass(frozen=True)
class DeviceServices:
    """Parts of the centre that serve devices beside the journal.

    Attributes:
        handlers: Handler of each type of control record.
        traffic: Counters per device.
    """

    handlers: Mapping[int, Handler] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)


class Receiver:
    """Receiver that owns the socket and a journal connection; ``run`` needs a thread of its own."""

    def __init__(
        self,
        endpoint: str,
        data_dir: Path,
        models: Mapping[bytes, Expected],
        arrived: Callable[[int], None],
        log: Log,
        authenticator: CurveAuthenticator | None = None,
        services: DeviceServices | None = None,
    ) -> None:
        """Bind to the endpoint.

        ``authenticator`` admits peers by key; without one, every peer is trusted. ``arrived`` is called with the id of
        the newest journalled record. ``counts`` holds totals.
        """
        services = services or DeviceServices()
        self._handlers, self._traffic = services.handlers, services.traffic
        self._authenticator = authenticator
        self._data_dir = data_dir
        self._models = models
        self._arrived = arrived
        self._log = log
        self.counts: Counter[str] = Counter()
        # Monotonic time at which the last loop pass began.
        self.turned_s = time.monotonic()
        self._lines: Counter[str] = Counter()
        self._lines_from_s = 0.0
        self.context = zmq.Context()
        self._socket = self.context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.SNDHWM, HIGH_WATER_MARK),
            (zmq.RCVHWM, HIGH_WATER_MARK),
            (zmq.LINGER, 500),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        ):
            self._socket.setsockopt(option, value)
        self._keys_checked_s = 0.0
        # True if the last pass took every whole message that waited.
        self._emptied = False
        self._connections = Connections(self._socket, self.counts, log)
        try:
            if authenticator:
                authenticator.protect(self._socket, self.context)
            self._socket.bind(endpoint)
            self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._connections.limits.listen_at(self.endpoint)
            self._socket.bind(GATEWAYS)
        except zmq.ZMQError as error:
            self.close()
            if error.errno == errno.EADDRINUSE:
                advice = "is another centre running? Choose another port in [central] listen"
            else:
                advice = "expected tcp://address:port of this machine in [central] listen"
            raise ReceiverError(f"{endpoint}: cannot listen there ({error}); {advice}") from None

    def run(self, stopping: Callable[[], bool]) -> None:
        """Receive until ``stopping`` is set; acknowledge committed records before returning.

        Raises:
            StoreError: The journal cannot be opened.
            DamagedStoreError: The store is damaged.
        """
        try:
            journal = Journal(self._data_dir)
            try:
                while not stopping():
                    self.turned_s = time.monotonic()
                    self._emptied = False
                    if self._socket.poll(POLL_MS):
                        self._take(journal, self._drain())
                    self._connections.follow()
                    self._connections.limits.check(self._emptied)
                    self._cut_off_revoked()
            finally:
                journal.close()
        finally:
            self.close()

    def close(self) -> None:
        self._connections.close()
        self._socket.close()
        if self._authenticator:
            self._authenticator.close()
        self.context.term()

    @property
    def _secured_bytes(self) -> int:
        return MESSAGE_BYTES if self._authenticator else 0

    def _drain(self) -> list[tuple[bytes, packet.Record, int, int]]:
        """Return up to one group of waiting records as (peer, record, received_us, wire bytes).

        The limit counts messages, not valid records: a peer that floods with garbage must not hold up the others.
        """
        group: list[tuple[bytes, packet.Record, int, int]] = []
        for _ in range(GROUP_RECORDS):
            try:
                message = self._take_message()
            except zmq.Again:
                self._emptied = True
                break
            peer, frame, n_frames, wire_bytes, sender = message
            if sender is None:
                # No answer. After a refusal, a device that is allowed again would set the record aside.
                self._count("not_allowed")
                continue
            try:
                if n_frames != 1:
                    raise packet.PacketError(f"message: expected one frame, got {n_frames}")
                record = packet.decode_record(frame.bytes)
            except packet.PacketError as error:
                self._count("damaged", sender=sender.name, reason=str(error))
                continue
            if self._authenticator and not self._authenticator.knows(sender, record.survey, record.device):
                self._count("not_allowed")
                continue
            if reason := self._impostor(sender, record):
                if record.type == packet.LATENT:
                    self.counts["identity_mismatch"] += 1
                    self._refuse(peer, record, reason)
                else:
                    self._count("identity_mismatch", device=record.device, reason=reason)
                continue
            received_us = now_us()
            self._traffic.received((record.survey, record.device), wire_bytes)
            if handler := self._handlers.get(record.type):
                for answer in handler(record, wire_bytes):
                    self._send(peer, answer)
                continue
            if record.type != packet.LATENT:
                # No answer. Each record type has its own numbers; the device would match the refusal to a latent with
                # the same number.
                self._count("not_taken", device=record.device, type=record.type)
                continue
            if reason := self._objection(record):
                self._traffic.refused((record.survey, record.device), reason, received_us)
                self._refuse(peer, record, reason)
                continue
            group.append((peer, record, received_us, wire_bytes))
        return group

    def _take_message(self) -> tuple[bytes, zmq.Frame, int, int, Identity | None]:
        """Return the next message: peer, last frame, number of frames, bytes on the wire, and sender.

        A message of many frames costs time for each. Its connection is shut down, and its key is suspended.

        Raises:
            zmq.Again: No message waits.
        """
        peer = self._socket.recv(zmq.DONTWAIT)
        frame = self._socket.recv(copy=False)
        wire_bytes, n_frames = frame_bytes(len(frame) + self._secured_bytes), 1
        fd = _descriptor(frame)
        key = self._authenticator.public_key(frame) if self._authenticator else b""
        sender = self._authenticator.sender(key) if self._authenticator else OWN_THREAD
        while frame.more:
            frame = self._socket.recv(copy=False)
            wire_bytes += frame_bytes(len(frame) + self._secured_bytes)
            n_frames += 1
            if n_frames == MAX_FRAMES:
                self._connections.limits.cut_off(fd, f"a message of more than {MAX_FRAMES} frames")
                if self._authenticator and key:
                    self._authenticator.suspend(key, SUSPENDED_S)
        self.counts["bytes_received"] += wire_bytes
        if sender is None:
            # The device reconnects, and the handshake tells it that its key is not allowed.
            self._connections.limits.cut_off(fd, "a key that is no longer allowed")
        elif fd >= 0:
            most = GATEWAY_CONNECTIONS if sender.device is None else DEVICE_CONNECTIONS
            self._connections.limits.delivered(fd, wire_bytes, Key(key, most) if key else None)
        return peer, frame, n_frames, wire_bytes, sender

    def _cut_off_revoked(self) -> None:
        """Shut down the connections of revoked keys that send nothing; the others end at their next message."""
        if self._authenticator and self.turned_s - self._keys_checked_s >= KEYS_CHECK_S:
            self._keys_checked_s = self.turned_s
            allowed = self._authenticator.sender
            for _ in range(self._connections.limits.cut_off_keys(lambda key: allowed(key) is not None)):
                self._count("not_allowed")

    @staticmethod
    def _impostor(sender: Identity, record: packet.Record) -> str | None:
        """Return why ``sender`` may not have sent ``record``, or None. Identity comes from the key, not from the
        record.
        """
        if sender.may_speak_for(record.survey, record.device):
            return None
        return (
            f"the key is {sender.name}'s, the record says survey {record.survey}, device {record.device}; "
            "give each device its own keys"
        )

    def _objection(self, record: packet.Record) -> str | None:
        """Return why the latent ``record`` can never become part of a map, or None if it can."""
        model = self._models.get(record.model_hash)
        if model is None:
            # Copy to a list first: a rollout may add a model concurrently.
            known = ", ".join(sorted(h.hex() for h in list(self._models)))
            return (
                f"this device's encoder {record.model_hash.hex()} is none of the centre's ({known}); "
                "install the bundle that belongs to the centre's decoder"
            )
        if record.device >= model.n_devices:
            return f"device {record.device} is not of this survey's 0 to {model.n_devices - 1}"
        try:
            model.coding.rate(len(record.payload))
        except RateError as error:
            return str(error)
        if record.sample_time_us > LAST_US:
            return f"sample time {record.sample_time_us} us is past the year 9999; set the device's clock"
        return None

    def _take(self, journal: Journal, group: list[tuple[bytes, packet.Record, int, int]]) -> None:
        """Commit a group, then acknowledge it. The decoder is notified before the sync, the devices after it."""
        if not group:
            return
        try:
            committed = journal.commit([entry[1:] for entry in group], self._arrived)
        except DamagedStoreError:
            # A repetition does not help. The centre stops and says so.
            raise
        except StoreError as error:
            # Unacknowledged records stay in the devices' spools and are sent again.
            self._count("commit_failed", records=len(group), reason=str(error))
            time.sleep(POLL_MS / 1000)
            return
        self.counts["records"] += len(committed.new)
        self.counts["duplicates"] += len(group) - len(committed.new) - len(committed.conflicts)
        answers: dict[tuple[bytes, int, int, int], list[packet.Record]] = {}
        self._traffic.seen({(latent.survey, latent.device) for latent in committed.new}, group[-1][2])
        for place, (peer, record, received_us, _) in enumerate(group):
            if place in committed.conflicts:
                reason = (
                    f"another record is kept as device {record.device}, boot {record.boot}, sequence "
                    f"{record.sequence}; has another device this number, or this one lost its state?"
                )
                self._traffic.refused((record.survey, record.device), reason, received_us)
                self._refuse(peer, record, reason)
            else:
                answers.setdefault((peer, record.survey, record.device, record.boot), []).append(record)
        for (peer, *_), records in answers.items():
            self._send(peer, packet.acknowledge(records[0], [r.sequence for r in records[1:]]))

    def _refuse(self, peer: bytes, record: packet.Record, reason: str) -> None:
        """Refuse a latent. Refusals of other record types must never be sent."""
        self._count("refused", device=record.device, event=record.event, reason=reason)
        self._send(peer, packet.refuse(record, reason))

    def _send(self, peer: bytes, record: packet.Record) -> None:
        data = packet.encode_record(record)
        try:
            self._socket.send_multipart([peer, data], zmq.DONTWAIT)
            wire_bytes = frame_bytes(len(data) + self._secured_bytes)
            self.counts["bytes_sent"] += wire_bytes
            self._traffic.sent((record.survey, record.device), wire_bytes)
        except zmq.ZMQError:
            # The peer is gone or not reading. It will send the record again and gets its answer then.
            self.counts["unanswered"] += 1

    def _count(self, what: str, **values: object) -> None:
        self.counts[what] += 1
        now_s = time.monotonic()
        if now_s - self._lines_from_s > LOG_S:
            if unwritten := sum(max(lines - LOG_LINES, 0) for lines in self._lines.values()):
                self._log.write("unwritten", lines=unwritten)
            self._lines.clear()
            self._lines_from_s = now_s
        self._lines[what] += 1
        if self._lines[what] <= LOG_LINES:
            self._log.write(what, **values)


def _descriptor(frame: zmq.Frame) -> int:
    """Return the file descriptor of the connection that brought ``frame``; -1 for the centre's own threads."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1
