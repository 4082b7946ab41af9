"""A centre's and a device's side of fetching recordings in one thread, over a link that a test may spoil."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from fake_decoder import MODEL_HASH, SURVEY, FakeDecoder, latent_record

from central.config import FetchSection
from central.fleet.gaps import GapWatch
from central.recordings.fetching import Fetching
from central.recordings.store import RecordingStore
from central.storage.database import connect
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from firmware_py.inference.companding import GatherError
from firmware_py.protocol import packet
from firmware_py.protocol.recording_messages import decode_message
from firmware_py.runtime.log import Log, now_us
from firmware_py.runtime.recording_sender import RecordingSender

T_US = 1_700_000_000_000_000


def samples_of(event: int, device: int) -> np.ndarray:
    """What a device has recorded: waves, in counts of a digitiser."""
    rng = np.random.default_rng([event, device])
    shape = (SURVEY.n_sources, SURVEY.n_time, len(SURVEY.device_receivers[device]))
    return np.rint(np.cumsum(rng.normal(size=shape), axis=1) * 100).astype(np.float32)


def put_event(data_dir: Path, event: int, flags: tuple[str, ...] = (), devices=range(5)) -> None:
    """An event's latents in the journal, their numbers known as after a second, and its map in the store."""
    with closing(Journal(data_dir)) as journal, closing(Store(data_dir)) as store:
        records = [latent_record(device, event, sequence=event) for device in devices]
        last = journal.commit([(record, record.sample_time_us, 94) for record in records]).new[-1].id
        maps = FakeDecoder().decode(np.zeros((5, FakeDecoder.latent), np.int8), np.ones(5, bool))
        provenance = {
            "devices": list(devices),
            "model_hash": MODEL_HASH.hex(),
            "sample_time_us": records[0].sample_time_us,
            "decoded_us": T_US,
            "received_bytes": 280,
            "acquisition": SURVEY.to_dict(),
            "flags": list(flags),
        }
        store.put([NewMap((1, event, MODEL_HASH), last, False, maps[0][0], maps[1][0], provenance)])
    with closing(connect(data_dir)) as database:
        GapWatch(Log(Path(os.devnull))).look(database, now_us())


class DeviceSide:
    """One device's sender; ``restart`` is a power cut."""

    def __init__(self, device: int, chunk_bytes: int = 4096) -> None:
        self.device = device
        self.chunk_bytes = chunk_bytes
        self.latents_waiting = False
        self.removed: set[int] = set()
        self.found: list[tuple[int, int]] = []
        self.boot = 0
        self.sender: RecordingSender | None = None
        self.restart()

    def restart(self) -> None:
        if self.sender:
            self.sender.close()
        self.boot += 1
        self.sequence = 0
        self.header = packet.Record(packet.UPDATE, self.device, 1, self.boot, 0, model_hash=MODEL_HASH)
        self.sender = RecordingSender(
            self.header,
            self._find,
            SURVEY.device_receivers[self.device],
            lambda: self.latents_waiting,
            self.chunk_bytes,
            lambda what, **values: None,
        )

    def _find(self, event: int, sample_time_us: int) -> np.ndarray:
        self.found.append((event, sample_time_us))
        if event in self.removed:
            raise GatherError(f"event {event}: not kept any more")
        return samples_of(event, self.device)

    def hello(self) -> packet.Record:
        self.sequence += 1
        return packet.Record(packet.HELLO, self.device, 1, self.boot, self.sequence)


class FetchRig:
    """Centre and devices; ``pass_on(record)`` says whether a message gets through."""

    def __init__(self, data_dir: Path, section: FetchSection | None = None, devices=range(5)) -> None:
        self.data_dir = data_dir
        self.section = section or FetchSection()
        self.devices = {device: DeviceSide(device) for device in devices}
        self.pass_on: Callable[[packet.Record], bool] = lambda record: True
        self.now_s = 1000.0
        self.clock_s = T_US / 1e6
        self.messages: list[object] = []
        self.sent_bytes = 0
        self.log = Log(data_dir / "fetch.jsonl")
        self.store = RecordingStore(data_dir)
        self.start_centre()

    def start_centre(self) -> None:
        """As after a kill: what was in memory alone is gone."""
        self.fetching = Fetching(self.data_dir, self.section, self.log, lambda: self.clock_s)
        self.fetching.take_up(self.store)

    def write(self) -> None:
        """A pass of the centre's ``watch``."""
        self.fetching.keep(self.store)
        self.fetching.take_up(self.store)
        self.fetching.apply_policy(self.store)

    def hear(self, side: DeviceSide, record: packet.Record) -> list[packet.Record]:
        """What the centre answers to a record that reached it."""
        if record.type == packet.RECORDING:
            return self.fetching.handle(record, packet.HEADER_BYTES + len(record.payload))
        return self.fetching.requests(record)

    def turn(self, side: DeviceSide, hello: bool = False) -> bool:
        """One pass of a device's loop; return False if it had nothing to send."""
        record = side.sender.poll(self.now_s)
        if record is None and hello:
            record = side.hello()
        if record is None:
            return False
        if record.type == packet.RECORDING:
            self.messages.append((side.device, decode_message(record.payload)))
            self.sent_bytes += packet.HEADER_BYTES + len(record.payload)
        if self.pass_on(record):
            for answer in self.hear(side, record):
                self.messages.append((None, decode_message(answer.payload)))
                if self.pass_on(answer):
                    side.sender.handle(answer, self.now_s)
        return True

    def settle(self, side: DeviceSide) -> None:
        """Wait for the thread that codes."""
        deadline_s = time.monotonic() + 30.0
        while (coding := side.sender._coding) and not coding.done() and time.monotonic() < deadline_s:
            time.sleep(0.001)

    def age_contacts(self) -> None:
        """Make each device's last message older than ``BUSY_S``, so that the centre asks again."""
        for transfers in self.fetching._transfers.values():
            for transfer in transfers.values():
                transfer.last_seen_s = float("-inf")

    def run(self, passes: int = 3000, hello_every: int = 50) -> None:
        """Devices and centre take turns until no request is open."""
        for number in range(passes):
            busy = False
            for side in self.devices.values():
                self.settle(side)
                busy |= self.turn(side, hello=number % hello_every == 0)
            self.now_s += 0.0 if busy else 1.0
            if not busy or number % 10 == 0:
                self.write()
                if not self.store.requests(only_open=True):
                    return

    def close(self) -> None:
        self.store.close()
        self.log.close()
        for side in self.devices.values():
            side.sender.close()

    def __enter__(self) -> FetchRig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
