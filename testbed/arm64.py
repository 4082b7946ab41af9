"""Emulate an arm64 device with qemu: Debian's own Python and the aarch64 wheels that run on a board.

This is user-mode emulation: the programs are the board's, the system calls are this machine's. Root is not needed. apt
and pip download the packages, as configured on this machine, into a folder that can be deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from testbed.errors import TestbedError
from testbed.processes import Runtime

FOLDER = Path("out/arm64")
QEMU = "qemu-aarch64-static"
# CPU of a Raspberry Pi 4.
PROCESSOR = "cortex-a72"
DEBIAN = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libsqlite3-0",
    "libssl3",
    "libffi8",
    "libexpat1",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "zlib1g",
)
# Imports of firmware_py in the versions of this environment, and PyNaCl's dependency cffi.
WHEELS = ("ai-edge-litert", "numpy", "pyzmq", "pyserial", "cbor2", "pynacl", "cffi")
# Wheel tags up to Debian 12's glibc, 2.36.
PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1))
TIMEOUT_S = 600
CORES = 4
_CORE = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def prepare(folder: Path = FOLDER, on_step: Callable[[str], None] = lambda step: None) -> None:
    """Download and unpack an arm64 Python with the wheels into ``folder`` (52 MB, 179 MB unpacked).

    Existing parts of the same versions are kept. Raises ``TestbedError`` with the failed command.
    """
    wanted = {"debian": list(DEBIAN), "wheels": [f"{name}=={metadata.version(name)}" for name in WHEELS]}
    if _made_of(folder) == wanted:
        return
    if _made_of(folder) is None and folder.exists():
        raise TestbedError(f"{folder}: exists and is not an arm64 root of EPIC; move it away")
    fresh = folder.with_name(f".{folder.name}.new").absolute()
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    on_step("Debian's packages for arm64")
    _unpack_debian(fresh)
    on_step("wheels for aarch64")
    site = fresh / "site"
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={site}"]
    for_board = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
    _call([*install, *for_board, *wanted["wheels"]], fresh)
    _describe_processor(fresh)
    (fresh / "made-of.json").write_text(json.dumps(wanted))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def runtime(folder: Path = FOLDER) -> Runtime:
    """Return how to run a process on the emulated processor. Raises ``TestbedError`` naming what is missing."""
    if shutil.which(QEMU) is None:
        raise TestbedError(f"{QEMU}: not found; install it with apt-get install qemu-user-static")
    if _made_of(folder) is None:
        raise TestbedError(f"{folder}: no arm64 Python there; make it with `epic testbed arm64`")
    root = folder.absolute()
    import firmware_py

    firmware = Path(firmware_py.__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": os.pathsep.join([str(root / "site"), str(firmware)]),
    }
    command = (QEMU, "-cpu", PROCESSOR, "-L", str(root), str(root / "usr" / "bin" / "python3.11"))
    return Runtime(command, environment, f"arm64, emulated ({PROCESSOR} by {QEMU}): times are the emulator's")


def _made_of(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "made-of.json").read_text())
    except (OSError, ValueError):
        return None


def _unpack_debian(root: Path) -> None:
    """Unpack Debian's arm64 packages into ``root`` with a separate apt state; the machine's own is not changed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise TestbedError("arm64: expected apt-get and dpkg-deb, which Debian has; prepare it on Debian 12")
    state = root / "apt"
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::State": str(state),
        "Dir::State::Lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    _call(["apt-get", "-qq", *options, "update"], state)
    _call(["apt-get", "-qq", *options, "download", *DEBIAN], state / "debs")
    for package in sorted((state / "debs").glob("*.deb")):
        _call(["dpkg-deb", "-x", str(package), str(root)], state)
    shutil.rmtree(state)


def _describe_processor(root: Path) -> None:
    """Write a description of the emulated processor to ``root``, where qemu looks before this machine's files.

    LiteRT reads it and crashes on this machine's own description, which is for another architecture.
    """
    cpu = root / "sys" / "devices" / "system" / "cpu"
    cpu.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpu / name).write_text(f"0-{CORES - 1}\n")
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text("".join(_CORE.format(core=core) for core in range(CORES)))


def _call(command: list[str], folder: Path) -> None:
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise TestbedError(f"{command[0]}: no end after {TIMEOUT_S} s; try again") from None
    if ran.returncode:
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
        reason = said[-1] if said else f"exit code {ran.returncode}"
        raise TestbedError(f"{' '.join(command[:3])}: {reason}; Debian 12 with its package lists is expected")
