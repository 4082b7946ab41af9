"""The released encoders on stock MicroPython against LiteRT's reference kernels, with heap, time and instructions.

    python benchmarks/device/micropython_encoder.py [--model ZOO_DIR]... [--architecture amd64|armhf]... [--json]

The inputs are the shipped recordings, each in the parts of its devices. MicroPython is Debian's (`.ci/micropython
amd64 armhf`), armhf under qemu-arm, whose time says nothing of a board's. Instructions are counted by Valgrind, on
amd64, as the difference between a run of two inferences and one of one. The last line is the number of latent values
that differ, over all bundles and architectures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from boards.fit.epicnn import compile_encoder, read_memory, reference_latents
from firmware_py.inference.bundle import EPICNN, MANIFEST, Bundle, load_bundle
from firmware_py.inference.companding import compand, quantise
from physics.acquisition import Acquisition
from testbed.run import DEFAULT_MODEL
from testbed.samples import load_samples

ROOT = Path(__file__).parents[2]
LOADERS = {
    "amd64": "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "armhf": "usr/lib/arm-linux-gnueabihf/ld-linux-armhf.so.3",
}
SCRIPT = """
import gc, json, micropython, time
from firmware_py.micropython.bundle import load_bundle
from firmware_py.micropython.runtime import open_model, reserve
gc.collect()
before = gc.mem_alloc()
bundle = load_bundle(".")
model = open_model(bundle, reserve(bundle), lambda: None)
gc.collect()
heap = gc.mem_alloc() - before
latent = bytearray(model.latent)
us = []
with open("inputs.bin", "rb") as inputs, open("latents.bin", "wb") as latents:
    for _ in range(COUNT):
        inputs.readinto(model.input)
        started = time.ticks_us()
        micropython.heap_lock()
        model.encode(latent)
        micropython.heap_unlock()
        us.append(time.ticks_diff(time.ticks_us(), started))
        latents.write(latent)
print(json.dumps({"heap_bytes": heap, "median_us": sorted(us)[len(us) // 2]}))
"""


def interpreter(architecture: str) -> list[str]:
    """The command that runs MicroPython; ends the program where it is not there."""
    root = Path(os.environ.get("EPIC_MICROPYTHON", ROOT / ".micropython")) / architecture
    loader = root / LOADERS[architecture]
    if not loader.exists():
        sys.exit(f"error: expected MicroPython in {root}, found none; run .ci/micropython {architecture}")
    emulator = ["qemu-arm-static"] if architecture == "armhf" else []
    return [*emulator, str(loader), "--library-path", str(loader.parent), str(root / "usr/bin/micropython")]


def run(
    folder: Path, architecture: str, count: int, tool: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [
        *tool,
        *interpreter(architecture),
        "-X",
        "heapsize=1m",
        "-c",
        SCRIPT.replace("COUNT", str(count)),
    ]
    environment = {**os.environ, "MICROPYPATH": f"{ROOT}:.frozen"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)


def count_instructions(folder: Path) -> int | None:
    """Instructions of one inference on amd64; None without Valgrind."""
    if shutil.which("valgrind") is None:
        return None
    tool = (
        "valgrind",
        "--tool=cachegrind",
        "--cache-sim=no",
        "--cachegrind-out-file=/dev/null",
        "--smc-check=all",
    )
    counts = []
    for inferences in (1, 2):
        said = run(folder, "amd64", inferences, tool).stderr
        counts.append(int(re.findall(r"I\s+refs:\s+([\d,]+)", said)[0].replace(",", "")))
    return counts[1] - counts[0]


def codes_of(bundle: Bundle) -> np.ndarray:
    """What the devices encode of the shipped recordings: ``(n, time, width, sources)`` int8."""
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    return np.stack(
        [
            quantise(
                compand(sample.gather[:, :, list(receivers)], bundle.companding, bundle.width),
                bundle.input.scale,
                bundle.input.zero_point,
            )
            for sample in load_samples()
            for receivers in acquisition.device_receivers
        ]
    )


def measure(model: Path, architectures: list[str]) -> list[dict[str, Any]]:
    bundle = load_bundle(model / "bundle")
    encoder, codes = bundle.encoder_path.read_bytes(), codes_of(bundle)
    expected = reference_latents(encoder, codes)
    compiled = compile_encoder(encoder, codes[:1])
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(bundle.folder / MANIFEST, folder)
        (folder / EPICNN).write_bytes(compiled)
        (folder / "inputs.bin").write_bytes(codes.tobytes())
        for architecture in architectures:
            said = json.loads(run(folder, architecture, len(codes)).stdout)
            got = np.frombuffer((folder / "latents.bin").read_bytes(), np.int8).reshape(expected.shape)
            rows.append(
                {
                    "model": model.name,
                    "architecture": architecture,
                    "inputs": len(codes),
                    "values": expected.size,
                    "differing": int(np.count_nonzero(got != expected)),
                    "file_bytes": len(compiled),
                    "buffer_bytes": read_memory(compiled).total,
                    "instructions": count_instructions(folder) if architecture == "amd64" else None,
                    **said,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    zoo = sorted(path for path in DEFAULT_MODEL.parent.iterdir() if (path / "bundle").is_dir())
    parser.add_argument(
        "--model", type=Path, action="append", help="folder with bundle/; without, all released"
    )
    parser.add_argument("--architecture", choices=tuple(LOADERS), action="append", help="without, both")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for model in given.model or zoo:
        rows += measure(model, given.architecture or list(LOADERS))
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        instructions = (
            f"{row['instructions']:,} instructions" if row["instructions"] else "instructions not counted"
        )
        print(
            f"{row['model']:16} {row['architecture']:6} {row['inputs']} inputs, {row['differing']} of "
            f"{row['values']:,} values differ, file {row['file_bytes']:,} B, heap {row['heap_bytes']:,} B (buffers "
            f"{row['buffer_bytes']:,} B), {row['median_us']:,} us, {instructions} an inference"
        )
    print(sum(row["differing"] for row in rows))


if __name__ == "__main__":
    main()
