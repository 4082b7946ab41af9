"""A centre killed at any moment: every record once, every event a map."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_decoder import MODEL_HASH, SURVEY, latent_record
from ports import free_port
from waiting import wait_until

from central.storage.journal import Journal
from central.storage.map_store import Store
from firmware_py.protocol import packet

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EVENTS = range(1, 25)
# What a kill at every write leaves is tested in test_journal.py; these are for the process around it.
KILLS = 2
WINDOW = 8
RESEND_S = 0.3


@pytest.fixture
def centre(data_dir):
    """Starts the centre's process again and again: ``centre(port)``; none is left after the test."""
    started = []

    def start(port: int) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), str(data_dir), str(port)]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Device:
    """Sends its records in order, a window at a time, each until it is acknowledged."""

    def __init__(self, dealer, device: int) -> None:
        self._dealer = dealer
        self.waiting = {
            e: latent_record(device=device, event=e, sequence=e, value=device + 1) for e in EVENTS
        }
        self._sent_s: dict[int, float] = {}

    def send(self) -> None:
        now_s = time.monotonic()
        for sequence in list(self.waiting)[:WINDOW]:
            if now_s - self._sent_s.get(sequence, -1.0) > RESEND_S:
                self._dealer.send(self.waiting[sequence])
                self._sent_s[sequence] = now_s

    def listen(self) -> None:
        while answer := self._dealer.answer(timeout_s=0.002):
            assert answer.type == packet.ACK, answer.payload
            for sequence in packet.acknowledged_sequences(answer):
                self.waiting.pop(sequence, None)


def test_killed_again_and_again_it_keeps_every_record_once_and_draws_every_event(centre, dealers, data_dir):
    port = free_port()
    process = centre(port)
    endpoint = f"tcp://127.0.0.1:{port}"
    devices = [Device(dealers(endpoint, f"epic-{d}".encode()), d) for d in range(SURVEY.n_devices)]
    total = len(EVENTS) * len(devices)
    kill_at = [total * (k + 1) // (KILLS + 1) for k in range(KILLS)]
    deadline_s = time.monotonic() + 120
    while any(device.waiting for device in devices):
        assert time.monotonic() < deadline_s, "records stay unacknowledged"
        assert process.poll() is None, "the centre ended by itself"
        for device in devices:
            device.send()
        acknowledged = total - sum(len(device.waiting) for device in devices)
        if kill_at and acknowledged >= kill_at[0]:
            # Right after sending: some of it is received, some committed, some acknowledged.
            kill_at.pop(0)
            process.kill()
            process.wait()
            process = centre(port)
        for device in devices:
            device.listen()
    assert not kill_at

    store = Store(data_dir)
    wait_until(
        lambda: sum(not stored.partial for stored in store.newest()) == len(EVENTS), what="every event's map"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    for stored in store.newest():
        assert stored.velocity_mps[0, : len(devices)].tolist() == [2001, 2002, 2003, 2004, 2005], stored.event
    store.close()
    journal = Journal(data_dir)
    for event in EVENTS:
        kept = journal.of_event((1, event, MODEL_HASH))
        assert sorted((k.device, k.sequence) for k in kept) == [(d, event) for d in range(len(devices))]
    assert journal.undecoded() == []
    journal.close()


def test_maps_not_yet_drawn_when_it_was_killed_are_drawn_at_the_next_start(centre, data_dir):
    """What a kill between the commit and the map leaves behind."""
    journal = Journal(data_dir)
    journal.commit([(latent_record(device=d, value=d + 1), 1000, 56) for d in range(5)])
    journal.commit([(latent_record(device=d, event=2, sequence=2, value=d + 1), 1000, 56) for d in range(3)])
    journal.close()
    process = centre(free_port())
    store = Store(data_dir)
    newest = wait_until(lambda: len(maps := list(store.newest())) == 2 and maps, what="both maps")
    assert [(stored.event, stored.partial) for stored in newest] == [(1, False), (2, True)]
    store.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
