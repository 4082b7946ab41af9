"""The released encoders on MicroPython for RV32IMC, the ESP32-C3's instructions, against LiteRT's reference kernels.

    benchmarks/device/micropython_rv32_build FOLDER
    python benchmarks/device/micropython_rv32.py FOLDER/firmware.elf [--model ZOO_DIR]... [--inputs N] [--json]

The firmware is MicroPython's port for QEMU's board `virt`. It mounts what `epic board install` would copy: compiled
modules, kernels as machine code, the compiled encoder. Inputs are the shipped recordings. Instructions are counted by
QEMU in a run of one inference. The last line is the number of latent values that differ, over all bundles.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from micropython_encoder import codes_of
from mpremote.romfs import VfsRomWriter

from boards.fit.epicnn import compile_encoder, reference_latents
from boards.install.micropython import mcu
from firmware_py.inference.bundle import EPICNN, MANIFEST, load_bundle
from testbed.run import DEFAULT_MODEL

PROCESSOR = "rv32imc"
# Memory addresses of the file system and of the machine timer. A tick of the timer is ``INSTRUCTIONS_A_TICK``.
FILES_AT, TIMER_AT = 0x8400_0000, 0x0200_BFF8
INSTRUCTIONS_A_TICK = 100
TIMEOUT_S = 3600.0
SCRIPT = """
import uctypes, vfs, sys, os
vfs.mount(vfs.VfsRom(uctypes.bytearray_at({at}, {size})), "/rom")
sys.path.append("/rom")
os.chdir("/rom")
import gc, binascii, machine, micropython
from firmware_py.micropython.bundle import load_bundle
from firmware_py.micropython.runtime import open_model, reserve
gc.collect()
before = gc.mem_alloc()
bundle = load_bundle("bundle")
model = open_model(bundle, reserve(bundle), lambda: None)
gc.collect()
print("heap", gc.mem_alloc() - before)
if "firmware_py.micropython.kernels" in sys.modules:
    raise ValueError("compiled here, not loaded")
latent = bytearray(model.latent)
with open("inputs.bin", "rb") as inputs:
    for _ in range({count}):
        inputs.readinto(model.input)
        started = machine.mem32[{timer}]
        micropython.heap_lock()
        model.encode(latent)
        micropython.heap_unlock()
        print("latent", binascii.hexlify(latent).decode(), machine.mem32[{timer}] - started)
machine.reset()
"""


def file_system(files: dict[str, bytes]) -> bytes:
    """An image of MicroPython's read-only file system."""
    tree: dict[str, Any] = {}
    for path, data in files.items():
        *folders, name = path.split("/")
        folder = tree
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[name] = data
    writer = VfsRomWriter()

    def put(folder: dict[str, Any]) -> None:
        for name, content in folder.items():
            if isinstance(content, bytes):
                writer.mkfile(name, content)
            else:
                writer.opendir(name)
                put(content)
                writer.closedir()

    put(tree)
    return bytes(writer.finalise())


def run(firmware: Path, image: Path, count: int, counted: bool) -> tuple[int, list[tuple[bytes, int]]]:
    """Heap in bytes, and latent and instructions of each of ``count`` inferences; the latter if ``counted``."""
    script = SCRIPT.format(at=FILES_AT, size=image.stat().st_size, count=count, timer=TIMER_AT)
    command = [
        *("qemu-system-riscv32", "-bios", "none", "-machine", "virt", "-nographic", "-monitor", "null"),
        *("-semihosting", "-serial", "stdio", "-kernel", str(firmware)),
        *("-device", f"loader,file={image},addr={FILES_AT:#x},force-raw=on"),
        *(("-icount", "shift=0") if counted else ()),
    ]
    # The raw prompt of MicroPython.
    said = subprocess.run(
        command, input=b"\x01" + script.encode() + b"\x04", capture_output=True, timeout=TIMEOUT_S, check=True
    ).stdout.decode(errors="replace")
    latents = re.findall(r"latent (\w+) (\d+)", said)
    heap = re.search(r"heap (\d+)", said)
    if heap is None or len(latents) != count:
        raise SystemExit(f"error: expected {count} latents, got {len(latents)}: {said[-400:]}")
    return int(heap[1]), [
        (bytes.fromhex(latent), INSTRUCTIONS_A_TICK * int(ticks)) for latent, ticks in latents
    ]


def measure(firmware: Path, model: Path, count: int) -> dict[str, Any]:
    bundle = load_bundle(model / "bundle")
    encoder, codes = bundle.encoder_path.read_bytes(), codes_of(bundle)[:count]
    expected = reference_latents(encoder, codes)
    files = mcu.program(PROCESSOR) | {
        f"bundle/{MANIFEST}": (bundle.folder / MANIFEST).read_bytes(),
        f"bundle/{EPICNN}": compile_encoder(encoder, codes[:1]),
        "inputs.bin": codes.tobytes(),
    }
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "files"
        image.write_bytes(file_system(files))
        heap_bytes, latents = run(firmware, image, len(codes), counted=False)
        _, [(_, instructions)] = run(firmware, image, 1, counted=True)
    got = np.array([np.frombuffer(latent, np.int8) for latent, _ in latents])
    return {
        "model": model.name,
        "inputs": len(codes),
        "values": expected.size,
        "differing": int(np.count_nonzero(got != expected)),
        "heap_bytes": heap_bytes,
        "instructions": instructions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    zoo = sorted(path for path in DEFAULT_MODEL.parent.iterdir() if (path / "bundle").is_dir())
    parser.add_argument("firmware", type=Path, help="firmware.elf of micropython_rv32_build")
    parser.add_argument(
        "--model", type=Path, action="append", help="folder with bundle/; without, all released"
    )
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measure(given.firmware, model, given.inputs) for model in given.model or zoo]
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['model']:16} {row['inputs']} inputs, {row['differing']} of {row['values']:,} values differ, heap "
            f"{row['heap_bytes']:,} B, {row['instructions']:,} instructions an inference"
        )
    print(sum(row["differing"] for row in rows))


if __name__ == "__main__":
    main()
