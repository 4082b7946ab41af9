"""What mutated input is thrown at. Each target takes inputs one by one and must refuse, take or pass over each.

An exception of any other kind than the declared ones, or something accepted that nobody sealed, ends the run.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import zmq
from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from mutations import Mutator
from waiting import wait_until

from central.config import FetchSection
from central.fleet.device_registry import DeviceRegistry
from central.gateway.sessions import FrameAuthenticators, SerialSession
from central.ingest.authentication import CurveAuthenticator
from central.ingest.receiver import GATEWAYS, DeviceServices, Expected, Receiver
from central.recordings.fetching import Fetching
from central.security.keys import KeyRing, allow, new_keys
from central.updates.rollout import Rollouts
from firmware_py.links.keys import read_key_folder, read_secret
from firmware_py.links.port import TcpPort
from firmware_py.links.zeromq import MAX_MESSAGE_BYTES, ZmqLink, open_dealer
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import UPLINK, Crc, Mac
from firmware_py.protocol.framing import Deframer
from firmware_py.protocol.health_messages import Health, Hello, decode_health, encode_health
from firmware_py.protocol.packet import PacketError
from firmware_py.protocol.update_messages import decode_message, encode_message
from firmware_py.runtime.log import Log

TIMEOUT_S = 120.0
DEVICE = "device-0"
# Inputs between two looks at whether all has been taken.
BATCH = 200


class PacketTarget:
    """``packet``: a record or a ``PacketError``, and what was read is written the same."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._mutator = Mutator(seed)

    def feed(self, inputs: int) -> None:
        for _ in range(inputs):
            data = self._mutator.mutated_record()
            try:
                record = packet.decode_record(data)
                if record.type == packet.ACK:
                    packet.acknowledged_sequences(record)
            except PacketError:
                self.counts["refused"] += 1
                continue
            if packet.encode_record(record) != data:
                raise AssertionError(f"{data.hex()} was read as something else")
            self.counts["taken"] += 1


class MessageTarget:
    """``update_messages`` and ``health_messages``: a message or a ``PacketError``."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._mutator = mutator = Mutator(seed)
        # What makes such messages, reads them and writes them.
        self._kinds: tuple[tuple[Callable, Callable, Callable], ...] = (
            (mutator.message, decode_message, encode_message),
            (mutator.hello, lambda data: decode_health(data, Hello), encode_health),
            (mutator.health, lambda data: decode_health(data, Health), encode_health),
        )

    def feed(self, inputs: int) -> None:
        for _ in range(inputs):
            honest, decode, encode = self._mutator.rng.choice(self._kinds)
            data = self._mutator.mutated_message(honest)
            try:
                message = decode(data)
            except PacketError:
                self.counts["refused"] += 1
                continue
            if decode(encode(message)) != message:
                raise AssertionError(f"{data.hex()} was read as something else")
            self.counts["taken"] += 1


class FrameTarget:
    """``framing`` and ``seal``: of a damaged stream only what was sealed comes out, and little is held."""

    MAX_FRAME_BYTES = 1000

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._mutator = Mutator(seed)
        secret = self._mutator.rng.randbytes(32)
        self._seals = [
            (seal, Deframer(seal.open, self.MAX_FRAME_BYTES)) for seal in (Crc(), Mac(secret, UPLINK))
        ]

    def feed(self, inputs: int) -> None:
        rng = self._mutator.rng
        for start in range(0, inputs, BATCH):
            seal, deframer = rng.choice(self._seals)
            frames = [self._mutator.mutated_frame(seal) for _ in range(min(BATCH, inputs - start))]
            stream = b"".join(frame for _, frame in frames) + b"\0"
            sealed = {record for record, _ in frames}
            taken = 0
            while stream:
                size = rng.randint(1, 2000)
                records = deframer.feed(stream[:size])
                stream = stream[size:]
                taken += len(records)
                if not sealed.issuperset(records):
                    raise AssertionError("a record came out that nobody had sealed")
                if len(deframer._buffer) > self.MAX_FRAME_BYTES:
                    raise AssertionError(f"the deframer holds {len(deframer._buffer)} bytes")
            self.counts["taken"] += taken
        self.counts["refused"] = sum(d.damaged_frames + d.unauthentic_frames for _, d in self._seals)


class FuzzedCentre:
    """A receiver on a thread with its authenticator, journal and handlers, and the keys of one device."""

    def __init__(self, folder: Path) -> None:
        self.own = new_keys(folder / "keys", DEVICE)
        allow(folder / "keys", DEVICE)
        self.keys = folder / "keys"
        self.log = Log(Path("/dev/null"))
        decoders = {MODEL_HASH: FakeDecoder()}
        models = {MODEL_HASH: Expected(FakeDecoder.n_devices, FakeDecoder().coding)}
        data_dir = folder / "central"

        def never(*_: object):
            raise AssertionError("no rollout is there to load")

        rollouts = Rollouts(data_dir, decoders, never, never, self.log)
        fetching = Fetching(data_dir, FetchSection(), self.log)
        book = DeviceRegistry(data_dir, rollouts.offer, self.log, requests=fetching.requests)
        handlers = {
            packet.UPDATE: rollouts.handle,
            packet.RECORDING: fetching.handle,
            packet.HELLO: book.handle,
            packet.HEALTH: book.handle,
        }
        self.receiver = Receiver(
            "tcp://127.0.0.1:*",
            data_dir,
            models,
            lambda newest: None,
            self.log,
            CurveAuthenticator(self.keys),
            DeviceServices(handlers, book.traffic),
        )
        self._stopping = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="receiver")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.receiver.run(self._stopping.is_set)
        except BaseException as error:
            self.failure = error

    def check(self) -> None:
        if self.failure:
            raise AssertionError("the receiver ended") from self.failure

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.check()


class ReceiverTarget:
    """The receiver over its real ROUTER with CURVE: messages of an allowed device, of one frame and of several.

    One input in 1,000 is a connection of bytes that are not ZeroMQ's.
    """

    def __init__(self, seed: int, centre: FuzzedCentre) -> None:
        self._centre = centre
        self._mutator = Mutator(seed)
        self._probe = 0
        self._context = zmq.Context()
        self._dealer = open_dealer(self._context, read_key_folder(centre.own))
        self._dealer.setsockopt(zmq.SNDTIMEO, int(1000 * TIMEOUT_S))
        self._dealer.connect(centre.receiver.endpoint)

    @property
    def counts(self) -> Counter[str]:
        counts = self._centre.receiver.counts
        taken = counts["records"] + counts["duplicates"]
        refused = counts["refused"] + counts["identity_mismatch"] + counts["damaged"] + counts["not_taken"]
        return Counter(taken=taken, refused=refused)

    def feed(self, inputs: int) -> None:
        rng = self._mutator.rng
        for place in range(inputs):
            if rng.random() < 0.001:
                self._shout()
                continue
            frames = [self._mutator.mutated_record()]
            if rng.random() < 0.02:
                frames += [rng.randbytes(rng.randrange(50)) for _ in range(rng.randint(1, 5))]
            if rng.random() < 0.001:
                frames = [rng.randbytes(rng.randrange(MAX_MESSAGE_BYTES - 100))]
            self._dealer.send_multipart(frames)
            if place % BATCH == 0:
                self._drain()
        self._ask()

    def _drain(self) -> None:
        self._centre.check()
        with contextlib.suppress(zmq.Again):
            while True:
                self._dealer.recv(zmq.DONTWAIT)

    def _ask(self) -> None:
        """Messages keep their order: when this record is answered, all before it were looked at."""
        self._probe += 1
        record = latent_record(device=0, sequence=self._probe, boot=0xFFFFFFFF)

        def answered() -> bool:
            self._centre.check()
            # Again each time: answers that were not read in time are dropped, as for any device.
            self._dealer.send(packet.encode_record(record))
            while self._dealer.poll(500):
                answer = packet.decode_record(self._dealer.recv())
                if (answer.type, answer.boot, answer.sequence) == (packet.ACK, record.boot, self._probe):
                    return True
            return False

        wait_until(answered, TIMEOUT_S, "the answer to an honest record")

    def _shout(self) -> None:
        host, port = self._centre.receiver.endpoint.removeprefix("tcp://").split(":")
        greeting = bytearray(b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(48))
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), TIMEOUT_S) as peer:
            peer.sendall(self._mutator.mutated(greeting, self._mutator.record))

    def close(self) -> None:
        self._dealer.close(0)
        self._context.term()


class GatewayTarget:
    """A gateway's ``SerialSession`` on one end of a connection, damaged frames in at the other, then the receiver."""

    def __init__(self, seed: int, centre: FuzzedCentre) -> None:
        self._centre = centre
        self._mutator = Mutator(seed)
        self._seal = Mac(read_secret(centre.own / f"{DEVICE}.mac"), UPLINK)
        listener = socket.create_server(("127.0.0.1", 0))
        self._peer = socket.create_connection(listener.getsockname())
        self._port = TcpPort(listener.accept()[0], "fuzzer")
        listener.close()
        self._upstream = ZmqLink(GATEWAYS, context=centre.receiver.context)
        self._line = SerialSession(
            "fuzzer", FrameAuthenticators(KeyRing(centre.keys)), self._upstream, centre.log
        )
        self._sent_bytes = 0
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="line")
        self._thread.start()

    @property
    def counts(self) -> Counter[str]:
        counts = self._line.counts
        # Behind it, a record may still find no room (``not_handed_on``), as on any line that is flooded.
        taken = counts["records"] + counts["not_handed_on"]
        return Counter(taken=taken, refused=counts["damaged"] + counts["unauthentic"])

    def _serve(self) -> None:
        try:
            self._line.serve(self._port, self._stopping.is_set)
        except BaseException as error:
            self._failure = error

    def feed(self, inputs: int) -> None:
        for start in range(0, inputs, BATCH):
            frames = [self._mutator.mutated_frame(self._seal)[1] for _ in range(min(BATCH, inputs - start))]
            stream = b"".join(frames)
            self._peer.sendall(stream)
            self._sent_bytes += len(stream)
            self._peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._peer.recv(1 << 16)
            self._peer.setblocking(True)
        wait_until(self._taken, TIMEOUT_S, "the line to take all bytes")

    def _taken(self) -> bool:
        self._centre.check()
        if self._failure:
            raise AssertionError("the line ended") from self._failure
        return self._line.counts["bytes_received"] == self._sent_bytes

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._upstream.close()
        self._port.close()
        self._peer.close()
