"""A board with stock MicroPython as a process of its own: recordings, viper, spool, TCP; killed and started at will."""

import contextlib
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import micropython_unix
import numpy as np
from micropython_board import STEP, counts_of, encoder_input, receivers_of

from boards.fit.epicnn import compile_encoder, reference_latents
from testbed.samples import load_samples

STUBS = Path(__file__).parent / "micropython" / "stock"
DEVICE = 1
START = "from firmware_py.micropython.start import start\nstart()\n"


class StockBoard:
    """A board at power-up, and after every kill."""

    def __init__(self, folder, bundle, endpoint, secret, events, interval_ms, **link):
        self.folder = folder
        (folder / "bundle").mkdir(parents=True)
        for path in STUBS.glob("*.py"):
            shutil.copy(path, folder)
        shutil.copy(bundle.folder / "manifest.json", folder / "bundle")
        model = bundle.encoder_path.read_bytes()
        part = counts_of(np.stack([sample.gather for sample in load_samples()[:events]]))
        part = np.ascontiguousarray(part[..., receivers_of(bundle, DEVICE)])
        inputs = np.stack([encoder_input(bundle, one) for one in part])
        self.latents = [latent.tobytes() for latent in reference_latents(model, inputs)]
        (folder / "bundle" / "encoder.epicnn").write_bytes(compile_encoder(model, inputs[:1]))
        np.save(folder / "gathers.npy", part)
        (folder / "device.mac").write_text(secret.hex())
        config = {
            "device": DEVICE,
            "secret": "device.mac",
            "link": {"kind": "tcp", "endpoint": endpoint, "resend_ms": 500, **link},
            "source": {"kind": "replay", "path": "gathers.npy", "step": STEP, "interval_ms": interval_ms},
        }
        (folder / "device.json").write_text(json.dumps(config))
        self._said = (folder / "said.txt").open("ab")
        self._process = None
        self.script = START

    def start(self):
        # Of a 64-bit machine that compiles its modules itself. At 300 kB whether the kernels fit hangs on the length of
        # paths; benchmarks/device/micropython_heap.py measures a board's heap.
        command = [*micropython_unix.command(heap="330k"), "-c", self.script]
        environment = {"MICROPYPATH": f"{self.folder}:{micropython_unix.ROOT}:.frozen"}
        self._process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=self._said, stderr=subprocess.STDOUT
        )

    def kill(self):
        self._process.kill()
        self._process.wait()

    def running(self):
        return self._process.poll() is None

    def ended_within(self, wait_s):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        return not self.running()

    def said(self):
        return (self.folder / "said.txt").read_text()

    def close(self):
        if self._process:
            self.kill()
        self._said.close()


def arrived(centre):
    return {event: payload for _, event, payload in centre.payloads()}


def kill_and_restart(board, times, longest_s):
    """Kill the running board ``times`` times, each after a random life of up to ``longest_s``, as power cuts do.

    The board is told that they were: on a loaded machine it is killed before the centre has answered, and five starts
    that fail otherwise are followed by ten minutes without recordings.
    """
    (board.folder / "power-on").touch()
    rng = random.Random(1)
    for _ in range(times):
        time.sleep(rng.uniform(0.05, longest_s))
        board.kill()
        board.start()
