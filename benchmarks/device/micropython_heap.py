"""The smallest heap in which a whole device starts and records, on 32-bit Arm under qemu-arm.

    python benchmarks/device/micropython_heap.py [--model ZOO_DIR] [--updates]

The modules are compiled as the installer does it for an RP2040, with TCP as link. MicroPython for Linux keeps machine
code outside its heap: its size is printed too, for on a board it counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from micropython_encoder import interpreter

from boards.fit.epicnn import compile_encoder, read_memory
from boards.install.micropython import cross, mcu
from firmware_py.inference.bundle import EPICNN, MANIFEST, load_bundle
from testbed.run import DEFAULT_MODEL

STUBS = Path(__file__).parents[2] / "tests" / "support" / "micropython" / "stock"
PROCESSOR = "armv6m"
LEAST_KIB, MOST_KIB, STEP_KIB = 100, 400, 2
SCRIPT = """
# As main.py does.
if __import__("firmware_py.micropython.restore", None, None, ("whole",)).whole():
    from firmware_py.micropython import start
device, _ = start.build(start.load_config("device.json"), lambda: None)
for _ in range(3):
    device.turn()
print("recorded", device._sequence)
"""


def make_board(folder: Path, model: Path, updates: bool) -> int:
    """Put a device on ``folder``; return the bytes of its encoder's buffers."""
    bundle = load_bundle(model / "bundle")
    compiled = compile_encoder(bundle.encoder_path.read_bytes())
    files = mcu.program(PROCESSOR)
    files["bundle/manifest.json"] = (bundle.folder / MANIFEST).read_bytes()
    files[f"bundle/{EPICNN}"] = compiled
    config = {
        "device": 0,
        "insecure": True,
        "link": {"kind": "tcp", "endpoint": "127.0.0.1:1"},
        "source": {"kind": "replay", "path": "gathers.npy", "step": 1e-3},
    }
    if updates:
        config["update"] = {"key": "signing.public"}
        files["signing.public"] = b"ab" * 32
    files["device.json"] = json.dumps(config).encode()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for path in STUBS.glob("*.py"):
        shutil.copy(path, folder)
    survey = bundle.manifest["acquisition"]
    shape = (1, len(survey["source_cells"]), survey["n_time"], len(survey["device_receivers"][0]))
    np.save(folder / "gathers.npy", np.ones(shape, "<i2"))
    return read_memory(compiled).total


def runs(folder: Path, heap_kib: int) -> bool:
    for path in folder.glob("spool*"):
        path.unlink()
    command = [*interpreter("armhf"), "-X", f"heapsize={heap_kib}k", "-c", SCRIPT]
    done = subprocess.run(
        command, cwd=folder, env={"MICROPYPATH": ".:.frozen"}, capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "recorded 1" in done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--updates", action="store_true", help="with a signing key")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        buffer_bytes = make_board(folder, given.model, given.updates)
        too_small, enough = LEAST_KIB, MOST_KIB
        while enough - too_small > STEP_KIB:
            middle = (too_small + enough) // 2
            if runs(folder, middle):
                enough = middle
            else:
                too_small = middle
    code_bytes = sum(len(kernel) for kernel in cross.native_kernels(PROCESSOR).values())
    print(
        f"{given.model.name}: starts and records in {enough} KiB of heap, not in {too_small} KiB; "
        f"{buffer_bytes:,} B of it are the encoder's buffers; besides {code_bytes:,} B of machine code"
    )


if __name__ == "__main__":
    main()
