"""Find the pinned wheels of a device's Python packages here, to be unpacked on the board.

The board needs neither pip nor network access, and an image for another processor is filled in the same way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from boards.install.linux.shell import InstallError
from boards.profile import Board

FOLDER = Path(__file__).parent
# Runtime of the profile -> (pins, Python versions for which all pins have wheels).
PINS = {
    "litert": ("edge.txt", ((3, 11), (3, 12), (3, 13))),
    "tflite-runtime-edgetpu": ("edge-tflite.txt", ((3, 11),)),
}
# glibc versions from 2018 on; pip treats each as a separate tag.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")


@dataclass(frozen=True)
class Pin:
    name: str
    version: str


@dataclass(frozen=True)
class Target:
    """Target of wheels: the board's Python (major, minor) and machine."""

    python: tuple[int, int]
    machine: str

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]} on {self.machine}"


def pins_of(board: Board) -> tuple[Pin, ...]:
    """Return exactly the packages that the board's runtime needs."""
    lines = (FOLDER / PINS[board.runtime][0]).read_text().split()
    return tuple(Pin(*line.split("==")) for line in lines)


def pythons_of(board: Board) -> tuple[tuple[int, int], ...]:
    return PINS[board.runtime][1]


def find_wheels(pins: tuple[Pin, ...], target: Target, wheels: Path | None) -> list[Path]:
    """Return a wheel for each pin, from the folder ``wheels`` alone, or from the registry with a cache.

    Raises:
        InstallError: Wheels are missing; the message names them and how to get them.
    """
    folder = wheels or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epic" / "wheels"
    if wheels and not wheels.is_dir():
        raise InstallError(f"{wheels}: no such folder; expected one with wheels for {target}")
    missing = [pin for pin in pins if not _find(pin, target, folder)]
    if missing and wheels:
        names = " ".join(f"{pin.name}=={pin.version}" for pin in missing)
        raise InstallError(
            f"{wheels}: no wheel of {names} for {target}; with a network: "
            f"pip download --no-deps {' '.join(_tags(target))} -d {wheels} {names}"
        )
    if missing:
        _download(missing, target, folder)
    found = [_find(pin, target, folder) for pin in pins]
    return [path for path in found if path]


def unpacked_bytes(wheels: list[Path]) -> int:
    total = 0
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as wheel:
                total += sum(entry.file_size for entry in wheel.infolist())
        except zipfile.BadZipFile:
            raise InstallError(f"{path}: not a whole wheel; remove it and run again") from None
    return total


def _tags(target: Target) -> list[str]:
    version = f"{target.python[0]}.{target.python[1]}"
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{target.machine}")]
    return ["--only-binary=:all:", "--python-version", version, *platforms]


def _download(pins: list[Pin], target: Target, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{pin.name}=={pin.version}" for pin in pins]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *_tags(target), "-d", folder, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not all(_find(pin, target, folder) for pin in pins):
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError(
            f"packages for {target}: pip could not get them ({errors[0] if errors else 'no message'}); "
            "without a network give --wheels DIR"
        )


def _find(pin: Pin, target: Target, folder: Path) -> Path | None:
    """Return the wheel of ``pin`` for the target; file names are NAME-VERSION-PYTHON-ABI-PLATFORM.whl."""
    for path in sorted(folder.glob(f"*-{pin.version}-*.whl")):
        parts = path.stem.split("-")
        if len(parts) != 5 or _plain(parts[0]) != _plain(pin.name) or parts[1] != pin.version:
            continue
        pythons, abi, platforms = parts[2].split("."), parts[3], parts[4].split(".")
        if _python_fits(pythons, abi, target.python) and _platform_fits(platforms, target.machine):
            return path
    return None


def _python_fits(pythons: list[str], abi: str, python: tuple[int, int]) -> bool:
    major, minor = python
    if abi == "none":
        return f"py{major}" in pythons
    exact = f"cp{major}{minor}"
    if abi == "abi3":
        # Built for this or an earlier 3.x.
        least = [int(tag[3:]) for tag in pythons if re.fullmatch(r"cp3\d+", tag)]
        return bool(least) and min(least) <= minor
    return exact in pythons and abi == exact


def _platform_fits(platforms: list[str], machine: str) -> bool:
    return "any" in platforms or any(f"{name}_{machine}" in platforms for name in PLATFORMS)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
