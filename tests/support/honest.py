"""``honest.py FOLDER RECORDS_PER_S``: devices over their own links at a steady rate, in a process of their own.

FOLDER/honest.json says who they are; FOLDER/honest.jsonl gets each second's records acknowledged and their waits.
It ends when FOLDER/honest.stop is there.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

from firmware_py.links.base import Link
from firmware_py.links.keys import read_key_folder, read_secret
from firmware_py.links.port import TcpPort
from firmware_py.links.stream import StreamLink
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac
from firmware_py.runtime.log import Log, now_us

RESEND_S = 2.0
TICK_S = 0.005


def open_link(keys: Path, device: int, zmq_endpoint: str, tcp_endpoint: str, over: str) -> Link:
    """A device's link with its own keys; ``over`` is zmq or tcp."""
    name = f"device-{device}"
    if over == "zmq":
        return ZmqLink(zmq_endpoint, read_key_folder(keys / name))
    secret = read_secret(keys / name / f"{name}.mac")
    return StreamLink(partial(TcpPort.connect, tcp_endpoint), Mac(secret, UPLINK), Mac(secret, DOWNLINK))


class Sender:
    """Records one latent after the other, and sends each until it is acknowledged."""

    def __init__(self, link: Link, device: int, model_hash: bytes, latent: int, boot: int = 1) -> None:
        self.link = link
        self._device, self._model_hash, self._latent, self._boot = device, model_hash, latent, boot
        self.recorded = 0
        # sequence -> (when recorded, when sent or 0, record)
        self.waiting: dict[int, tuple[float, float, bytes]] = {}
        self.refused: list[str] = []

    def record(
        self, payload: bytes | None = None, device: int | None = None, event: int | None = None
    ) -> None:
        """``device`` other than its own is a lie; events count with the records unless ``event`` is given."""
        self.recorded += 1
        n = self.recorded
        record = packet.Record(
            packet.LATENT,
            self._device if device is None else device,
            1,
            self._boot,
            n,
            n if event is None else event,
            now_us(),
            self._model_hash,
            payload or n.to_bytes(4, "little") * (self._latent // 4),
        )
        self.waiting[n] = (time.monotonic(), 0.0, packet.encode_record(record))

    def turn(self) -> list[float]:
        """Send what is due, hear what there is; seconds from recording to acknowledgement of each."""
        now_s = time.monotonic()
        for n, (recorded_s, sent_s, data) in list(self.waiting.items()):
            if now_s - sent_s > RESEND_S:
                if not self.link.send(data):
                    break
                self.waiting[n] = (recorded_s, now_s, data)
        waits_s = []
        while (data := self.link.receive(0.0)) is not None:
            answer = packet.decode_record(data)
            if answer.type == packet.ACK:
                for n in packet.acknowledged_sequences(answer):
                    if sent := self.waiting.pop(n, None):
                        waits_s.append(time.monotonic() - sent[0])
            elif answer.type == packet.REFUSAL:
                self.waiting.pop(answer.sequence, None)
                self.refused.append(answer.payload.decode())
        return waits_s


def main() -> None:
    folder, records_per_s = Path(sys.argv[1]), float(sys.argv[2])
    who = json.loads((folder / "honest.json").read_text())
    senders = [
        Sender(
            open_link(folder / "keys", device, who["zmq"], who["tcp"], over),
            device,
            bytes.fromhex(who["model_hash"]),
            who["latent"],
        )
        for device, over in who["devices"]
    ]
    log = Log(folder / "honest.jsonl")
    each_per_s = records_per_s / len(senders)
    started_s = report_s = time.monotonic()
    waits_s: list[float] = []
    while not (folder / "honest.stop").exists():
        now_s = time.monotonic()
        for sender in senders:
            while sender.recorded < (now_s - started_s) * each_per_s:
                sender.record()
            waits_s += sender.turn()
        if now_s - report_s >= 1.0:
            log.write("second", seconds=now_s - report_s, waits_s=[round(wait, 4) for wait in waits_s])
            report_s, waits_s = now_s, []
        time.sleep(TICK_S)
    deadline_s = time.monotonic() + 30.0
    while any(sender.waiting for sender in senders) and time.monotonic() < deadline_s:
        for sender in senders:
            sender.turn()
        time.sleep(TICK_S)
    log.write(
        "ended",
        recorded=sum(sender.recorded for sender in senders),
        unacknowledged=sum(len(sender.waiting) for sender in senders),
        refused=sum(len(sender.refused) for sender in senders),
    )
    for sender in senders:
        sender.link.close()


if __name__ == "__main__":
    main()
