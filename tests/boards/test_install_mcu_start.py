"""A device installed over a pseudo-terminal by the real mpremote, started by real MicroPython, and watched.

The board is a thread: it runs main.py, interrupts it and serves a prompt when 0x03 comes, and starts anew at a reset,
as a board does over USB.
"""

import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import tty
from pathlib import Path

import numpy as np
import pytest
import serial
from installing import install
from micropython_board import STEP, encoder_input
from micropython_run import RUNNER, STUBS, find_micropython

import epic
from boards.install.micropython import console, mcu, mpremote
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder

pytestmark = [pytest.mark.slow, pytest.mark.emulated]
RESET = 7
RESETS = "\n\ndef reset():\n    import node\n\n    node.exit(7)\n"


class Board:
    def __init__(self, root):
        self.root = root
        self._master, self._port = os.openpty()
        self._line_near, self._line = os.openpty()
        for descriptor in (self._port, self._line):
            tty.setraw(descriptor)
        self.name = os.ttyname(self._port)
        self._node = ["node", str(RUNNER), str(find_micropython()), str(root)]
        self._over = False
        self._process = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        at_prompt = True
        while not self._over:
            if not at_prompt and (self.root / "main.py").exists():
                at_prompt = self._run_main()
                continue
            self._process = subprocess.Popen([*self._node, "-"], stdin=self._master)
            self._process.wait()
            at_prompt = False

    def _run_main(self):
        """Whether it was interrupted, or has ended."""
        self._process = subprocess.Popen(
            [*self._node, "main.py", os.ttyname(self._line)],
            stdin=subprocess.DEVNULL,
            stdout=self._master,
            stderr=subprocess.STDOUT,
        )
        while self._process.poll() is None and not self._over:
            readable, _, _ = select.select([self._master], [], [], 0.1)
            # One byte at a time: what follows is the prompt's.
            if readable and os.read(self._master, 1) == b"\3":
                self._process.kill()
                break
        return self._process.wait() != RESET

    def close(self):
        self._over = True
        self._process.kill()
        self._thread.join()
        for descriptor in (self._master, self._port, self._line_near, self._line):
            os.close(descriptor)


@pytest.fixture
def board(parts, tmp_path, monkeypatch):
    pytest.importorskip("mpremote", reason="needs the extra micropython")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mpremote, "TIMEOUT_S", 120.0)
    # pySerial empties the port when it opens it, and with it the line of a board that stops at once. USB takes a second
    # or two to come back, and nothing is lost.
    monkeypatch.setattr(serial.Serial, "_reset_input_buffer", lambda self: None)
    # The build for Node.js says that it is no board.
    monkeypatch.setattr(mcu, "check_identity", lambda *_: None)
    monkeypatch.setattr(mcu, "check_fit", lambda *_: None)
    root = tmp_path / "flash"
    (root / "bundle").mkdir(parents=True)
    shutil.copy(STUBS / "ml.py", root)
    (root / "machine.py").write_text((STUBS / "machine.py").read_text().split("def reset")[0] + RESETS)
    bundle = load_bundle(parts / "bundle")
    survey = bundle.manifest["acquisition"]
    shape = (len(survey["source_cells"]), survey["n_time"], len(survey["device_receivers"][0]))
    part = np.random.default_rng(0).integers(-9000, 9000, shape).astype("<i2")
    np.save(root / "gathers.npy", part[None])
    # What the stand-in for `ml` computes: the recording, and the zeros of the installer's trial.
    encoder, inputs = (
        Encoder(bundle),
        [encoder_input(bundle, part), np.zeros(bundle.input.shape[1:], np.int8)],
    )
    table = {
        "input_bytes": int(np.prod(bundle.input.shape)),
        "scale": bundle.output.scale,
        "zero_point": bundle.output.zero_point,
        "latents": {
            hashlib.sha256(one.tobytes()).digest()[:8].hex(): encoder.encode(one).tobytes().hex()
            for one in inputs
        },
    }
    (root / "bundle" / "table.json").write_text(json.dumps(table))
    one = Board(root)
    yield one
    one.close()


def test_an_installation_is_watched_to_its_hello_and_a_device_that_gives_up_is_told(parts, board, capsys):
    source = ["--replay", "gathers.npy", "--step", str(STEP)]
    there = ["--port", board.name]
    assert install(parts, *there, *source, "--json", board="openmv-rt1062", endpoint="uart:1") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit_code"]) == ("hello", 0)
    assert found["said"].startswith("epic: hello sent")
    assert any(step.strip().startswith("by ml") for step in found["steps"])

    for path in ("device-0.mac", "copy/device-0.mac"):
        (board.root / path).unlink()
    assert epic.main(["board", "status", *there, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found["damaged"]) == {"device-0.mac", "copy/device-0.mac"}
    seen = console.watch(board.name, 60.0)
    assert seen.state == "stopped" and "device-0.mac: damaged, without an intact second copy" in seen.said
