"""The microcontroller's script, whole, under real MicroPython: script, bytes, gateway, journal, map."""

import contextlib
import random
import subprocess
import threading
import time

import numpy as np
import pytest
from micropython_board import counts_of, make_board
from micropython_run import command
from waiting import wait_until

from central.config import CentralConfig
from central.fleet.device_views import devices
from central.pipeline.decoders import load_models
from central.security import keys
from central.service import Service
from central.storage.journal import Journal
from central.storage.map_store import Store
from firmware_py.inference.bundle import load_bundle
from firmware_py.runtime.log import Log
from testbed.emulation.serial_emulator import EmulatedSerial
from testbed.run import find_model
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

DEVICES = 5
EVENTS = 4
KILLS = 3
PATIENCE_S = 180.0


class Board:
    """A board at power-up, and after every kill."""

    def __init__(self, folder, line):
        self._command = command(folder, line)
        self._said = (folder.parent / f"{folder.name}.txt").open("ab")
        self._process = None
        self.start()

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=self._said, stderr=subprocess.STDOUT)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def close(self):
        self.kill()
        self._said.close()


@contextlib.contextmanager
def centre(folder, model, ports):
    """The real centre, decoder and all, on a thread."""
    config = CentralConfig.model_validate(
        {
            "central": {
                "listen": "tcp://127.0.0.1:*",
                "data_dir": folder / "data",
                "keys": folder / "keys",
                "pictures": False,
            },
            "model": [{"bundle": model.bundle, "decoder": model.decoder}],
            "gateway": {"ports": ports, "baud": 115_200},
        }
    )
    service = Service(config, load_models(config), Log(folder / "central.jsonl"))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield
    finally:
        service.stop()
        thread.join()


def stored(folder):
    store = Store(folder / "data")
    try:
        return {one.event: one for one in store.newest()}
    finally:
        store.close()


def told(folder):
    """What the centre knows of the boards, once each has told that nothing waits and measured the way."""
    views = devices(folder / "data")
    whole = all(view.round_trip_s and view.queue_depth == 0 for view in views)
    return views if len(views) == DEVICES and whole else None


def journalled(folder):
    """(device, event) -> the latents that came for it, one for each record."""
    journal = Journal(folder / "data")
    try:
        found = {}
        for event in range(1, EVENTS + 1):
            for row in journal.of_event((1, event, load_bundle(find_model(None).bundle).model_hash)):
                found.setdefault((row.device, event), []).append(row.payload)
        return found
    finally:
        journal.close()


@pytest.mark.emulated
def test_five_boards_on_noisy_lines_killed_again_and_again(tmp_path):
    """1 bit in 10,000 is wrong; what the store holds is what the encoder makes on this machine, bit for bit."""
    command(tmp_path)
    model = find_model(None)
    bundle = load_bundle(model.bundle)
    counts = counts_of(np.stack([sample.gather for sample in load_samples()[:EVENTS]]))
    rng = random.Random(1)
    expected = {}
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(EmulatedSerial(115_200, 1e-4, seed=d)) for d in range(DEVICES)]
        keys.new_centre(tmp_path / "keys")
        for device in range(DEVICES):
            name = f"device-{device}"
            keys.new_keys(tmp_path / "keys", name)
            keys.allow(tmp_path / "keys", name)
            secret = (tmp_path / "keys" / name / f"{name}.mac").read_text()
            health = {"interval_s": 1}
            latents = make_board(tmp_path / name, bundle, device, counts, secret, health=health)
            expected.update({(device, event): [latent] for event, latent in enumerate(latents, start=1)})
        stack.enter_context(centre(tmp_path, model, [line.centre_path for line in lines]))
        boards = [
            stack.enter_context(contextlib.closing(Board(tmp_path / f"device-{d}", line.device_path)))
            for d, line in enumerate(lines)
        ]
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.5, 3.0))
            board = rng.choice(boards)
            board.kill()
            board.start()
        wait_until(lambda: len(journalled(tmp_path)) == DEVICES * EVENTS, PATIENCE_S, "every record")
        wait_until(
            lambda: sum(not one.partial for one in stored(tmp_path).values()) == EVENTS, PATIENCE_S, "maps"
        )
        views = wait_until(lambda: told(tmp_path), PATIENCE_S, "health of every board")
        assert sum(line.bit_errors for line in lines), "no bit was wrong: the lines prove nothing"
    assert journalled(tmp_path) == expected
    assert {(view.device, view.board, view.loss, view.dropped) for view in views} == {
        (device, "node", 0, 0) for device in range(DEVICES)
    }
