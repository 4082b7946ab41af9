"""Durable records a second: DEALERs in one thread, the centre's receiver and journal in another.

    python benchmarks/centre/receive.py [--records 5000] [--devices 5] [--window 32] [--folder DIR] [--json]

A record counts when its acknowledgement is back at the device, so when it is on the disk. Both ends
share one process and so one interpreter lock: a centre with devices elsewhere is no slower than this.
The disk decides: give the --folder of the disk that the centre will use (/tmp may be memory).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import zmq

from central.doctor import fsync_s
from central.ingest.receiver import Expected, Receiver
from central.storage.journal import Journal
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding
from firmware_py.runtime.log import Log, now_us

MODEL_HASH = bytes(8)
LATENT = 128
TIMEOUT_S = 120.0
FSYNCS = 20


class Device:
    """Sends ``count`` records, ``window`` at a time; ``waits_s`` is each one's time to its acknowledgement."""

    def __init__(self, context: zmq.Context, endpoint: str, device: int, count: int, window: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, f"epic-{device}".encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self._device, self._count, self._window = device, count, window
        self._sequence = 0
        self._sent_s: dict[int, float] = {}
        self.waits_s: list[float] = []

    @property
    def finished(self) -> bool:
        return len(self.waits_s) == self._count

    def send(self) -> None:
        while self._sequence < self._count and len(self._sent_s) < self._window:
            self._sequence += 1
            n = self._sequence
            latent = n.to_bytes(4, "little") * (LATENT // 4)
            record = packet.Record(packet.LATENT, self._device, 1, 1, n, n, now_us(), MODEL_HASH, latent)
            self._sent_s[n] = time.perf_counter()
            self.socket.send(packet.encode_record(record))

    def listen(self) -> None:
        answer = packet.decode_record(self.socket.recv())
        if answer.type != packet.ACK:
            raise RuntimeError(f"device {self._device}: refused ({answer.payload.decode()})")
        for sequence in packet.acknowledged_sequences(answer):
            self.waits_s.append(time.perf_counter() - self._sent_s.pop(sequence))


def exchange(endpoint: str, devices: int, count: int, window: int) -> tuple[float, list[float]]:
    """Seconds until every record is acknowledged, and each record's wait. Raises ``TimeoutError``."""
    context = zmq.Context()
    poller = zmq.Poller()
    senders = {}
    for number in range(devices):
        device = Device(context, endpoint, number, count, window)
        senders[device.socket] = device
        poller.register(device.socket, zmq.POLLIN)
    started = time.perf_counter()
    while not all(device.finished for device in senders.values()):
        for device in senders.values():
            device.send()
        for socket, _ in poller.poll(1000):
            senders[socket].listen()
        if time.perf_counter() - started > TIMEOUT_S:
            raise TimeoutError(f"records unacknowledged after {TIMEOUT_S} s; use fewer --records")
    took_s = time.perf_counter() - started
    for socket in senders:
        socket.close()
    context.term()
    return took_s, [wait for device in senders.values() for wait in device.waits_s]


def benchmark(folder: Path, devices: int, records: int, window: int) -> dict[str, float]:
    """The figures of one run in an empty ``folder``; what is in the journal at the end is counted."""
    disk_ms = 1000 * fsync_s(folder, FSYNCS)
    models = {MODEL_HASH: Expected(devices, Coding(LATENT))}
    delivered: list = []
    log = Log(folder / "log.jsonl")
    receiver = Receiver("tcp://127.0.0.1:*", folder, models, delivered.append, log)
    stopping = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stopping.is_set,))
    thread.start()
    try:
        took_s, waits_s = exchange(receiver.endpoint, devices, records // devices, window)
    finally:
        stopping.set()
        thread.join()
        log.close()
    journal = Journal(folder)
    kept = len(journal.undecoded())
    journal.close()
    if kept != len(waits_s):
        raise RuntimeError(f"{len(waits_s)} records acknowledged, {kept} in the journal")
    return {
        "devices": devices,
        "window": window,
        "records": kept,
        "records_per_s": round(kept / took_s, 1),
        "acknowledged_median_ms": round(statistics.median(waits_s) * 1000, 2),
        "acknowledged_p95_ms": round(statistics.quantiles(waits_s, n=20)[-1] * 1000, 2),
        "fsync_median_ms": round(disk_ms, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--devices", type=int, default=5)
    parser.add_argument("--window", type=int, default=32, help="records a device has under way at once")
    parser.add_argument(
        "--folder", type=Path, help="where the journal is written; default: the system's /tmp"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not 1 <= arguments.devices <= arguments.records // 2 or arguments.window < 1:
        parser.error("expected --devices and --window from 1, and at least two --records a device")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = benchmark(Path(folder), arguments.devices, arguments.records, arguments.window)
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"{result['records_per_s']:.0f} durable records/s from {result['devices']} devices "
        f"({result['window']} under way each); acknowledged after {result['acknowledged_median_ms']} ms, "
        f"95 % within {result['acknowledged_p95_ms']} ms; an fsync here takes {result['fsync_median_ms']} ms"
    )


if __name__ == "__main__":
    main()
