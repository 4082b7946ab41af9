"""Processor time that a centre spends on an event of five devices, by part; a loaded machine hardly changes it.

    python benchmarks/centre/event_cost.py [--events 320] [--model ZOO_DIR]

"receive" is the receiver's thread: CURVE's frames, checks, commit and acknowledgement, four events a group. "network"
is the decoder, event by event. "store" is the rest of the decoder's thread: read, assemble, describe, compress, commit.
Devices and ZeroMQ's own threads are not counted. Times are means; the store is in memory, so that no disk counts.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from central.ingest.authentication import CurveAuthenticator
from central.ingest.receiver import Expected, Receiver
from central.pipeline.decoding import Decoding
from central.security.keys import allow, new_keys
from central.storage.journal import Journal
from central.storage.journal_cursor import JournalCursor
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.links.keys import device_name, read_key_folder
from firmware_py.links.zeromq import open_dealer
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log, now_us
from models.inversion.decoder import Decoder, load_decoder
from testbed.run import find_model
from testbed.samples import load_samples

GROUP_EVENTS = 4


class SameMaps:
    """Decoder whose network takes no time: it returns maps that were predicted before."""

    def __init__(self, decoder: Decoder, maps: tuple[np.ndarray, np.ndarray]) -> None:
        self._decoder, self._maps = decoder, maps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode_batch(self, latents: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._maps[0][: len(latents)], self._maps[1][: len(latents)]


def receive(folder: Path, latents: np.ndarray, decoder: Decoder, events: int) -> float:
    """Seconds of the receiver's thread; fills the journal in ``folder``."""
    keys, n_devices = folder / "keys", decoder.n_devices
    for device in range(n_devices):
        new_keys(keys, device_name(1, device))
        allow(keys, device_name(1, device))
    log = Log(folder / "receiver.jsonl")
    Journal(folder / "data").close()
    model_hash = bytes.fromhex(decoder.model_hash)
    receiver = Receiver(
        "tcp://127.0.0.1:*",
        folder / "data",
        {model_hash: Expected(n_devices, decoder.coding)},
        lambda newest: None,
        log,
        authenticator=CurveAuthenticator(keys, log),
    )
    stopping = threading.Event()
    took_s = []

    def run() -> None:
        receiver.run(stopping.is_set)
        took_s.append(time.thread_time())

    thread = threading.Thread(target=run)
    thread.start()
    context = zmq.Context()
    sockets = []
    for device in range(n_devices):
        socket = open_dealer(context, read_key_folder(keys / device_name(1, device)))
        socket.setsockopt(zmq.RCVHWM, events + 1)
        socket.connect(receiver.endpoint)
        socket.poll(60_000, zmq.POLLOUT)
        sockets.append(socket)
    for event in range(1, events + 1):
        for device, socket in enumerate(sockets):
            payload = latents[event % len(latents), device].tobytes()
            record = packet.Record(packet.LATENT, device, 1, 1, event, event, now_us(), model_hash, payload)
            socket.send(packet.encode_record(record))
        while event % GROUP_EVENTS == 0 and receiver.counts["records"] < n_devices * event:
            time.sleep(0.0005)
    while receiver.counts["records"] < n_devices * events:
        time.sleep(0.0005)
    stopping.set()
    thread.join()
    for socket in sockets:
        socket.close(0)
    context.term()
    return took_s[0]


def store(folder: Path, decoder: SameMaps, events: int) -> float:
    """Seconds of the decoder's thread for what the journal in ``folder`` holds."""
    cursor, took_s = JournalCursor(), []
    decoding = Decoding(
        folder / "data",
        10.0,
        {bytes.fromhex(decoder.model_hash): decoder},
        cursor,
        Log(folder / "decoder.jsonl"),
        lambda picture: None,
    )

    def run() -> None:
        decoding.run()
        took_s.append(time.thread_time())

    thread = threading.Thread(target=run)
    thread.start()
    while decoding.counts["complete"] < events:
        time.sleep(0.01)
    cursor.end()
    thread.join()
    return took_s[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=320)
    parser.add_argument("--model", type=Path, default=None)
    given = parser.parse_args()
    model = find_model(given.model)
    decoder, encoder = load_decoder(model.decoder), Encoder(load_bundle(model.bundle))
    groups = [list(group) for group in decoder.acquisition.device_receivers]
    latents = np.stack(
        [
            [encoder.encode_recording(sample.gather[:, :, group]) for group in groups]
            for sample in load_samples()[:16]
        ]
    )
    present = np.ones(latents.shape[:2], bool)
    maps = decoder.decode_batch(latents, present)
    began_s = time.process_time()
    decoder.decode_batch(latents, present)
    network_s = (time.process_time() - began_s) / len(latents)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        receive_s = receive(Path(folder), latents, decoder, given.events) / given.events
        store_s = store(Path(folder), SameMaps(decoder, maps), given.events) / given.events
    for part, seconds in (("receive", receive_s), ("network", network_s), ("store", store_s)):
        print(f"{part:<8} {1000 * seconds:6.2f} ms")
    print(f"{'all':<8} {1000 * (receive_s + network_s + store_s):6.2f} ms of processor time an event")


if __name__ == "__main__":
    main()
