"""The centre under many devices: surveys of five devices each, every one an event in turn, real decoder.

    python benchmarks/centre/scale.py [--devices 5,50,500] [--events-per-s 100] [--seconds 20] [--model ZOO_DIR]
    further: [--json]

The centre is `epic central run` in a process of its own; the devices are DEALERs in this one, each with its own
CURVE key. They send the latents of the shipped gathers, the five of an event at once, events evenly spread
over time. Latency is from sending to the map being committed to the store. Exits with 1 where an event has no
complete map. Last line: what 500 devices come to, or the most that was asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import zmq

from central.security.keys import allow, new_keys
from central.storage.map_store import Store
from firmware_py.inference.bundle import Bundle, load_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.links.keys import device_name, read_key_folder
from firmware_py.links.zeromq import open_dealer
from firmware_py.protocol import packet
from firmware_py.runtime.log import now_us
from testbed.processes import Processes, resident_mib
from testbed.run import Deployment, Model, find_model
from testbed.samples import load_samples

START_TIMEOUT_S = 90.0
WARM_UP_EVENTS = 10
RESEND_S = 2.0
DRAIN_S = 120.0


def latents(bundle: Bundle) -> list[list[bytes]]:
    """By gather, then device."""
    encoder = Encoder(bundle)
    groups = bundle.manifest["acquisition"]["device_receivers"]
    return [
        [encoder.encode_recording(sample.gather[:, :, group]).tobytes() for group in groups]
        for sample in load_samples()
    ]


class Fleet:
    """``surveys`` of five devices, each device a DEALER with its own boot and sequence."""

    def __init__(self, endpoint: str, keys: Path, surveys: int, bundle: Bundle, payloads: list[list[bytes]]):
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._bundle, self._payloads = bundle, payloads
        self._n_devices = len(payloads[0])
        self._poller = zmq.Poller()
        self._sockets = []
        self._unacknowledged: dict[tuple[int, int, int], tuple[zmq.Socket, bytes, float]] = {}
        self._sequences = [0] * surveys
        for survey, device in product(range(1, surveys + 1), range(self._n_devices)):
            socket = open_dealer(self._context, read_key_folder(keys / device_name(survey, device)))
            socket.setsockopt(zmq.RCVHWM, 1000)
            socket.setsockopt(zmq.SNDHWM, 1000)
            socket.connect(endpoint)
            self._poller.register(socket, zmq.POLLIN)
            self._sockets.append(socket)

    def send(self, survey: int) -> None:
        """The next event of a survey (from 0), all its devices at once."""
        self._sequences[survey] += 1
        number = self._sequences[survey]
        payloads = self._payloads[number % len(self._payloads)]
        sent_us = now_us()
        for device, payload in enumerate(payloads):
            record = packet.Record(
                packet.LATENT,
                device,
                survey + 1,
                1,
                number,
                number,
                sent_us,
                self._bundle.model_hash,
                payload,
            )
            socket = self._sockets[survey * self._n_devices + device]
            data = packet.encode_record(record)
            self._unacknowledged[survey + 1, device, number] = (socket, data, time.monotonic())
            # A connection that is not up yet takes nothing; the record goes with those to be sent again.
            if socket.poll(0, zmq.POLLOUT):
                socket.send(data, zmq.DONTWAIT)

    def listen(self, until_s: float) -> None:
        """Take acknowledgements in until a time, at least what is there."""
        while True:
            for socket, _ in self._poller.poll(max(0, int((until_s - time.monotonic()) * 1000))):
                answer = packet.decode_record(socket.recv())
                if answer.type == packet.REFUSAL:
                    raise RuntimeError(bytes(answer.payload).decode())
                for sequence in packet.acknowledged_sequences(answer):
                    self._unacknowledged.pop((answer.survey, answer.device, sequence), None)
            if time.monotonic() >= until_s:
                return

    def send_again(self) -> int:
        """Send what has waited too long; returns how many wait at all."""
        now_s = time.monotonic()
        for key, (socket, data, sent_s) in list(self._unacknowledged.items()):
            if now_s - sent_s > RESEND_S and socket.poll(0, zmq.POLLOUT):
                socket.send(data, zmq.DONTWAIT)
                self._unacknowledged[key] = (socket, data, now_s)
        return len(self._unacknowledged)

    def drain(self) -> None:
        """Send and listen until everything is acknowledged. Raises ``TimeoutError``."""
        until_s = time.monotonic() + DRAIN_S
        while waiting := self.send_again():
            if time.monotonic() > until_s:
                raise TimeoutError(f"{waiting} records are not acknowledged after {DRAIN_S:.0f} s")
            self.listen(time.monotonic() + 0.1)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(0)
        self._context.term()


def benchmark(
    folder: Path, model: Model, payloads: list[list[bytes]], devices: int, events_per_s: float, seconds: float
) -> dict:
    """Figures of one size, the events without a complete map among them; ``folder`` is empty."""
    bundle = load_bundle(model.bundle)
    surveys = devices // len(payloads[0])
    keys = folder / "keys"
    for survey, device in product(range(1, surveys + 1), range(len(payloads[0]))):
        new_keys(keys, device_name(survey, device))
        allow(keys, device_name(survey, device))
    events = int(events_per_s * seconds)
    with Processes() as processes:
        centre = Deployment(processes, model, folder, keys).start_centre()
        endpoint = centre.wait_for("ready", START_TIMEOUT_S)["endpoint"]
        fleet = Fleet(endpoint, keys, surveys, bundle, payloads)
        for event in range(WARM_UP_EVENTS):
            fleet.send(event % surveys)
        fleet.drain()
        memory_before = resident_mib(centre.pid)
        began_us, started_s = now_us(), time.monotonic()
        late_s = 0.0
        for event in range(events):
            due_s = started_s + event / events_per_s
            fleet.listen(due_s)
            late_s = max(late_s, time.monotonic() - due_s)
            fleet.send(event % surveys)
        fleet.drain()
        fleet.close()
        memory_after = resident_mib(centre.pid)
        centre.end(timeout_s=120.0)
        # The centre logs a map once it is committed.
        stored_us = {(row["survey"], row["event"]): row["timestamp_us"] for row in centre.entries("map")}
    stored = list(Store(folder / "central").newest())
    complete = [map_ for map_ in stored if not map_.partial]
    measured = [
        (map_.provenance["sample_time_us"], stored_us[map_.survey, map_.event])
        for map_ in complete
        if map_.provenance["sample_time_us"] >= began_us
    ]
    latencies_ms = [(end_us - sent_us) / 1000 for sent_us, end_us in measured]
    last_s = (max(end_us for _, end_us in measured) - began_us) / 1e6
    return {
        "devices": devices,
        "surveys": surveys,
        "events": events + WARM_UP_EVENTS,
        "lost": events + WARM_UP_EVENTS - len(complete),
        "offered_events_per_s": events_per_s,
        "drawn_events_per_s": round(events / max(last_s, seconds), 1),
        "latency_median_ms": round(statistics.median(latencies_ms), 1),
        "latency_p95_ms": round(float(np.percentile(latencies_ms, 95)), 1),
        "sender_late_ms": round(1000 * late_s, 1),
        "memory_before_mb": round(memory_before),
        "memory_after_mb": round(memory_after),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="5,50,500")
    parser.add_argument("--events-per-s", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = find_model(given.model)
    payloads = latents(load_bundle(model.bundle))
    sizes = [int(devices) for devices in given.devices.split(",")]
    if any(devices < len(payloads[0]) or devices % len(payloads[0]) for devices in sizes):
        parser.error(f"--devices: expected multiples of a survey's {len(payloads[0])}; got {given.devices}")
    results = []
    for devices in sizes:
        with tempfile.TemporaryDirectory() as folder:
            results.append(
                benchmark(Path(folder), model, payloads, devices, given.events_per_s, given.seconds)
            )
        row = results[-1]
        if not given.json:
            print(
                f"{row['devices']} devices, {row['offered_events_per_s']:g} events/s offered: "
                f"{row['drawn_events_per_s']} drawn, {row['lost']} of {row['events']} lost, latency median "
                f"{row['latency_median_ms']} ms, 95 % {row['latency_p95_ms']} ms, memory {row['memory_before_mb']} "
                f"to {row['memory_after_mb']} MB"
            )
    if given.json:
        print(json.dumps(results))
    return 1 if any(row["lost"] for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
