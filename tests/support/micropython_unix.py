"""Real MicroPython with the viper emitter: Debian 13's, unpacked by ``.ci/micropython``; armhf under qemu-arm."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADERS = {
    "amd64": "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "armhf": "usr/lib/arm-linux-gnueabihf/ld-linux-armhf.so.3",
}


def command(architecture: str = "amd64", heap: str = "256k") -> list[str]:
    """What runs it; skips the test, saying why, where it is not there."""
    root = Path(os.environ.get("EPIC_MICROPYTHON", ROOT / ".micropython")) / architecture
    loader = root / LOADERS[architecture]
    if not loader.exists():
        pytest.skip(f"MicroPython for {architecture} is not installed; run .ci/micropython {architecture}")
    if architecture == "amd64":
        emulator = []
    elif emulator := shutil.which("qemu-arm-static"):
        emulator = [emulator]
    else:
        pytest.skip("qemu-arm-static is not installed; run .ci/packages")
    start = [str(loader), "--library-path", str(loader.parent), str(root / "usr/bin/micropython")]
    return [*emulator, *start, "-X", f"heapsize={heap}"]


def run(
    folder: Path,
    script: str,
    architecture: str = "amd64",
    timeout_s: float = 120.0,
    heap: str = "256k",
    path: str = f"{ROOT}:.frozen",
) -> str:
    """What ``script`` prints, run in ``folder`` with the modules of ``path``: this repository's, or a board's own."""
    done = subprocess.run(
        [*command(architecture, heap), "-c", script],
        cwd=folder,
        env={"MICROPYPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout
