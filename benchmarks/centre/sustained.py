"""One centre on one core under a steady stream for minutes: durable records a second, losses, memory.

    python benchmarks/centre/sustained.py [--records-per-s 6000] [--devices 50] [--seconds 300] [--folder DIR]
    further: [--out results.json]

The centre is a process bound to the first core: guard with CURVE, receiver, journal, assembler and store, with a
decoder that takes no time; every event becomes a map. The devices are DEALERs with their own keys in this process,
bound to the other cores, each with a latent of 128 bytes of every event. A record counts when its acknowledgement is
back; at the end the journal must hold each once. Memory is the centre's, read each second after the first tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import zmq

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from ports import free_port
from tiny import ENCODER, bundle_fields

from central.security.keys import allow, new_keys
from firmware_py.inference.bundle import Bundle, create_bundle
from firmware_py.links.keys import read_key_folder
from firmware_py.links.zeromq import open_dealer
from firmware_py.protocol import packet
from firmware_py.runtime.log import now_us
from testbed.processes import Process, resident_mib

CENTRE = Path(__file__).parents[2] / "tests" / "support" / "centre_process.py"
LATENT = 128
WINDOW = 64
RESEND_S = 2.0
TICK_S = 0.002
DRAIN_S = 60.0


class Device:
    """Queues what is recorded, sends within a window, sends again, and counts what is acknowledged."""

    def __init__(
        self, context: zmq.Context, endpoint: str, keys: Path, number: int, model_hash: bytes
    ) -> None:
        self.socket = open_dealer(context, read_key_folder(keys / f"device-{number}"))
        self.socket.connect(endpoint)
        self._number, self._model_hash = number, model_hash
        self._waiting: deque[tuple[int, bytes]] = deque()
        # sequence -> (when sent, when recorded, record)
        self._in_flight: dict[int, tuple[float, float, bytes]] = {}
        self._recorded_s: dict[int, float] = {}
        self.acknowledged = 0
        self.resent = 0
        self.waits_s: list[float] = []

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._in_flight

    def record(self, event: int, now_s: float) -> None:
        latent = event.to_bytes(4, "little") * (LATENT // 4)
        record = packet.Record(
            packet.LATENT, self._number, 1, 1, event, event, now_us(), self._model_hash, latent
        )
        self._waiting.append((event, packet.encode_record(record)))
        self._recorded_s[event] = now_s

    def send(self, now_s: float) -> None:
        with contextlib.suppress(zmq.Again):
            while self._waiting and len(self._in_flight) < WINDOW:
                sequence, data = self._waiting[0]
                self.socket.send(data, zmq.DONTWAIT)
                self._waiting.popleft()
                self._in_flight[sequence] = (now_s, self._recorded_s.pop(sequence), data)

    def send_again(self, now_s: float) -> None:
        for sequence, (sent_s, recorded_s, data) in self._in_flight.items():
            if now_s - sent_s > RESEND_S:
                with contextlib.suppress(zmq.Again):
                    self.socket.send(data, zmq.DONTWAIT)
                    self._in_flight[sequence] = (now_s, recorded_s, data)
                    self.resent += 1

    def listen(self, now_s: float) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                answer = packet.decode_record(self.socket.recv(zmq.DONTWAIT))
                if answer.type != packet.ACK:
                    raise RuntimeError(f"device {self._number}: refused ({answer.payload.decode()})")
                for sequence in packet.acknowledged_sequences(answer):
                    if sent := self._in_flight.pop(sequence, None):
                        self.acknowledged += 1
                        self.waits_s.append(now_s - sent[1])


class Centre:
    """The process, on one core, and what it takes."""

    def __init__(self, folder: Path, n_devices: int) -> None:
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.data_dir = folder / "central"
        for device in range(n_devices):
            new_keys(folder / "keys", f"device-{device}")
            allow(folder / "keys", f"device-{device}")
        self.bundle = self._bundle(folder, n_devices)
        (folder / "central.toml").write_text(
            f'[central]\nlisten = "{self.endpoint}"\nkeys = "keys"\ndata_dir = "central"\nlog = "central.jsonl"\n'
            'pictures = false\n[[model]]\nbundle = "bundle"\ndecoder = "none"\n'
        )
        os.sched_setaffinity(0, {0})
        self.process = Process("central", [str(CENTRE), str(folder / "central.toml")], folder)
        os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)))
        self.process.wait_for("ready", 60.0)
        self._pid = self.process.pid

    @staticmethod
    def _bundle(folder: Path, n_devices: int) -> Bundle:
        """One of so many devices; its encoder is never run."""
        fields = bundle_fields()
        fields["output"] = {**fields["output"], "shape": [1, LATENT]}
        fields["acquisition"] = {
            **fields["acquisition"],
            "receiver_cells": list(range(n_devices)),
            "device_receivers": [[device] for device in range(n_devices)],
        }
        return create_bundle(folder / "bundle", ENCODER, fields)

    def resident_mib(self) -> float:
        return resident_mib(self._pid)

    def busy_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def count(self, query: str) -> int:
        with contextlib.closing(sqlite3.connect(self.data_dir / "central.sqlite", timeout=30.0)) as database:
            return database.execute(query).fetchone()[0]


def drive(centre: Centre, devices: list[Device], records_per_s: float, seconds: float) -> dict:
    """Record at a steady rate, then wait until all is acknowledged; what the centre took meanwhile."""
    memory_mib = []
    events_per_s = records_per_s / len(devices)
    busy_s, started_s = centre.busy_s(), time.monotonic()
    next_look_s, event = started_s + seconds / 10, 0
    ended_s = None
    while True:
        now_s = time.monotonic()
        if now_s - started_s < seconds:
            for _ in range(int((now_s - started_s) * events_per_s) - event):
                event += 1
                for device in devices:
                    device.record(event, now_s)
        elif ended_s is None:
            ended_s, busy_s = now_s, centre.busy_s() - busy_s
            steady = sum(device.acknowledged for device in devices)
        elif all(device.idle for device in devices):
            break
        elif now_s - ended_s > DRAIN_S:
            raise TimeoutError(f"records unacknowledged {DRAIN_S:.0f} s after the last")
        for device in devices:
            device.listen(now_s)
            device.send(now_s)
        if now_s >= next_look_s:
            next_look_s = now_s + 1.0
            memory_mib.append(centre.resident_mib())
            for device in devices:
                device.send_again(now_s)
        time.sleep(max(TICK_S - (time.monotonic() - now_s), 0.0))
    return {
        "records": event * len(devices),
        "records_per_s": round(steady / seconds, 1),
        "centre_busy": round(busy_s / seconds, 3),
        "memory_mib": [round(value, 1) for value in memory_mib],
        "events": event,
    }


def benchmark(folder: Path, given: argparse.Namespace) -> dict:
    centre = Centre(folder, given.devices)
    context = zmq.Context()
    try:
        devices = [
            Device(context, centre.endpoint, folder / "keys", number, centre.bundle.model_hash)
            for number in range(given.devices)
        ]
        result = drive(centre, devices, given.records_per_s, given.seconds)
        for device in devices:
            device.socket.close(0)
    finally:
        centre.process.end(60.0)
        context.destroy(0)
    waits_s = [wait for device in devices for wait in device.waits_s]
    kept = centre.count("SELECT count(*) FROM record")
    return {
        **result,
        "acknowledged": len(waits_s),
        "kept": kept,
        "lost": len(waits_s) - kept,
        "resent": sum(device.resent for device in devices),
        "complete_maps": centre.count("SELECT count(*) FROM map WHERE NOT partial"),
        "acknowledged_median_ms": round(1000 * statistics.median(waits_s), 1),
        "acknowledged_p99_ms": round(1000 * statistics.quantiles(waits_s, n=100)[-1], 1),
        **{name: value for name, value in vars(given).items() if name not in ("out", "folder")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records-per-s", type=float, default=6000.0)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--folder", type=Path, help="where the centre writes; default: the system's /tmp")
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    if not 1 <= given.devices <= 70 or given.seconds < 10 or given.records_per_s < given.devices:
        parser.error("expected 1 to 70 --devices, at least 10 --seconds and a record a second of each")
    if (os.cpu_count() or 1) < 2:
        parser.error("expected two cores: one for the centre, one for the devices")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = benchmark(Path(folder), given)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    memory_mib = result["memory_mib"]
    half = len(memory_mib) // 2
    print(
        f"the centre's core {100 * result['centre_busy']:.0f} % busy; {result['complete_maps']} maps of "
        f"{result['events']} events; acknowledged after {result['acknowledged_median_ms']} ms, 99 % within "
        f"{result['acknowledged_p99_ms']} ms; {result['resent']} sent again; memory {memory_mib[0]} MiB at first, "
        f"{statistics.mean(memory_mib[:half]):.1f} in the first half, {statistics.mean(memory_mib[half:]):.1f} in "
        f"the second, at most {max(memory_mib)}"
    )
    print(
        f"{result['records_per_s']:.0f} durable records/s from {result['devices']} devices on one core for "
        f"{result['seconds']:.0f} s: {result['acknowledged']} acknowledged, {result['lost']} lost; resident memory "
        f"{memory_mib[0]} MiB at first, {memory_mib[-1]} MiB at the end"
    )
    whole = result["lost"] == 0 and result["acknowledged"] == result["records"] == result["kept"]
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
