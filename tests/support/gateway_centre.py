"""A centre's receiver with a gateway beside it, and devices at the far ends of its lines."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

from fake_decoder import LATENT, MODEL_HASH
from waiting import wait_until

from central.config import GatewaySection
from central.gateway.gateway import Gateway
from central.gateway.sessions import FrameAuthenticators
from central.ingest.authentication import CurveAuthenticator
from central.ingest.receiver import GATEWAYS, Expected, Receiver
from central.security import keys
from central.security.keys import KeyRing
from central.storage.journal import Journal
from firmware_py.links.base import Link
from firmware_py.links.keys import read_secret
from firmware_py.links.port import SerialPort, TcpPort
from firmware_py.links.stream import StreamLink
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac
from firmware_py.protocol.framing import Deframer, encode_frame
from firmware_py.protocol.rate import Coding
from firmware_py.runtime.log import Log

N_DEVICES = 5


class GatewayCentre:
    """Receiver and gateway on threads; devices 0 to 4 have keys in ``folder``/keys."""

    def __init__(
        self,
        folder: Path,
        ports: list[str] | None = None,
        baud: int = 115_200,
        models: dict[bytes, Expected] | None = None,
    ) -> None:
        self.keys = folder / "keys"
        for device in range(N_DEVICES):
            keys.new_keys(self.keys, f"device-{device}")
            keys.allow(self.keys, f"device-{device}")
        self._data_dir = folder / "data"
        Journal(self._data_dir).close()
        self._log_path = folder / "log.jsonl"
        log = Log(self._log_path)
        self.receiver = Receiver(
            "tcp://127.0.0.1:*",
            self._data_dir,
            models or {MODEL_HASH: Expected(N_DEVICES, Coding(LATENT))},
            lambda newest: None,
            log,
            authenticator=CurveAuthenticator(self.keys),
        )
        section = GatewaySection(ports=ports or [], baud=baud, tcp=None if ports else "127.0.0.1:0")
        self.gateway = Gateway(
            section,
            FrameAuthenticators(KeyRing(self.keys)),
            lambda: ZmqLink(GATEWAYS, context=self.receiver.context),
            log,
        )
        self._running = []
        for run in (self.gateway.run, self.receiver.run):
            stop = threading.Event()
            thread = threading.Thread(target=run, args=(stop.is_set,))
            thread.start()
            self._running.append((stop, thread))

    def __enter__(self) -> GatewayCentre:
        return self

    def __exit__(self, *_: object) -> None:
        # Lines first: they hold sockets of the receiver's context.
        for stop, thread in self._running:
            stop.set()
            thread.join()

    @property
    def endpoint(self) -> str:
        assert self.gateway.listener
        return self.gateway.listener.endpoint

    @property
    def listener(self) -> Counter[str]:
        assert self.gateway.listener
        return self.gateway.listener.counts

    def secret(self, device: int) -> bytes:
        return read_secret(self.keys / f"device-{device}" / f"device-{device}.mac")

    def frame(self, record: packet.Record, device: int | None = None) -> bytes:
        """As ``device`` (by default the record's) seals it."""
        seal = Mac(self.secret(record.device if device is None else device), UPLINK)
        return encode_frame(packet.encode_record(record), seal)

    def answers(self, device: int) -> Deframer:
        """Finds what is for ``device`` in the bytes that come down a line."""
        return Deframer(Mac(self.secret(device), DOWNLINK).open)

    def tcp_device(self, device: int, endpoint: str | None = None) -> StreamLink:
        secret = self.secret(device)
        return StreamLink(
            lambda: TcpPort.connect(endpoint or self.endpoint), Mac(secret, UPLINK), Mac(secret, DOWNLINK)
        )

    def serial_device(self, device: int, path: str, baud: int = 115_200) -> StreamLink:
        secret = self.secret(device)
        seals = Mac(secret, UPLINK), Mac(secret, DOWNLINK)
        return StreamLink(lambda: SerialPort(path, baud), *seals, bytes_per_s=baud / 10)

    def payloads(self) -> list[tuple[int, int, bytes]]:
        """(device, event, payload) of every record in the journal."""
        journal = Journal(self._data_dir)
        try:
            return [(row.device, row.event, row.payload) for row in journal.undecoded()]
        finally:
            journal.close()

    def kept(self) -> list[tuple[int, int]]:
        """(device, sequence) of every record in the journal."""
        journal = Journal(self._data_dir)
        try:
            return [(row.device, row.sequence) for row in journal.undecoded()]
        finally:
            journal.close()

    def logged(self, what: str) -> list[dict]:
        lines = [json.loads(line) for line in self._log_path.read_text().splitlines(keepends=True)]
        return [line for line in lines if line["message"] == what]


def deliver(link: Link, record: packet.Record, timeout_s: float = 60.0) -> packet.Record:
    """Send until it is answered, as a device does; the answer."""
    data = packet.encode_record(record)

    def answered() -> bytes | None:
        link.send(data)
        return link.receive(1.0)

    return packet.decode_record(wait_until(answered, timeout_s, "an answer"))
