"""What a device takes on a Linux board: disk, memory, and the time from its start to its first record.

    python benchmarks/device/footprint.py [--model DIR] [--records 200] [--starts 7] [--json]

`epic board install` fills a root folder; its own Python packages and its own node.toml then run the device, over
CURVE to `epic central run` in another process. At each start one recording lies in the watched folder. A start is cold
when no module is compiled and no file of the installation in memory, as at the first one ever; at power-up the modules
are compiled, and still no file in memory; warm is a restart. The interpreter and the C library are in memory always,
for this machine uses them. A record is sent when the device says so, and at the centre when its acknowledgement,
so its commit, is back. Memory is the peak of the resident set after further ``--records`` as fast as they go.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import epic
from boards.install.linux.layout import CACHE, PREFIX, STATE, Layout
from firmware_py.inference.bundle import load_bundle
from testbed.errors import TestbedError
from testbed.processes import Processes
from testbed.run import Deployment, Model, find_model, make_keys
from testbed.samples import load_samples

SORTS = ("cold", "power-up", "warm")
DISK_MB, MEMORY_MB, START_S = 250, 120, 3.0
TIMEOUT_S = 300.0


class Device:
    """The installed device: its processes, one after the other, and what they say of themselves."""

    def __init__(self, root: Path, parts: np.ndarray) -> None:
        self._root, self._parts = root, parts
        self._said = root.with_name("device.log")
        self._recordings = 0
        self._child: subprocess.Popen | None = None

    def put_recording(self) -> None:
        """The next one, into the folder that the device watches."""
        path = self._root / f"{STATE}/incoming".lstrip("/") / f"shot-{self._recordings + 1:06d}.npy"
        aside = path.with_name(f".{path.name}")
        np.save(aside, self._parts[self._recordings % len(self._parts)])
        os.replace(aside, path)
        self._recordings += 1

    def start(self) -> None:
        with self._said.open("wb") as said:
            self.started_us = time.time_ns() // 1000
            self._child = subprocess.Popen(
                Layout(str(self._root)).run_argv("run"),
                # As from systemd: nothing of this process's own environment.
                env={"PATH": os.defpath},
                stderr=said,
                stdout=subprocess.DEVNULL,
            )

    def wait_for(self, what: str, count: int = 1) -> list[dict]:
        """The first ``count`` lines of its log of a kind. Raises ``TestbedError``."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            lines = [line for line in self._said.read_text().splitlines(keepends=True) if line.endswith("\n")]
            rows = [json.loads(line) for line in lines if line.startswith("{")]
            if len(found := [row for row in rows if row["message"] == what]) >= count:
                return found
            if self._child.poll() is not None:
                raise TestbedError(f"the device ended: {lines[-1].strip() if lines else 'no message'}")
            time.sleep(0.02)
        raise TestbedError(f"the device has not {what} {count} within {TIMEOUT_S:.0f} s")

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def stop(self) -> None:
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(60)

    def kill(self) -> None:
        """End it whatever it does, where it runs."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def install(model: Model, root: Path, keys: Path, endpoint: str) -> None:
    """As a user does. Raises ``TestbedError``."""
    arguments = ["--bundle", str(model.bundle), "--device", "0", "--endpoint", endpoint, "--keys", str(keys)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = epic.main(["board", "install", "--board", "generic-linux", "--root", str(root), *arguments])
    if code:
        raise TestbedError("the installation failed; see the line above")


def disk_bytes(*folders: Path) -> int:
    """What the files and folders take on the disk, in whole blocks."""
    there = [path for folder in folders for path in (folder, *folder.rglob("*")) if folder.exists()]
    return sum(path.lstat().st_blocks * 512 for path in there)


def forget(root: Path) -> None:
    """Let the kernel drop the installation's files from memory."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_start(device: Device, root: Path, sort: str) -> tuple[float, float]:
    """Seconds from the start of the process to its first record sent, and acknowledged."""
    if sort == "cold":
        shutil.rmtree(root / CACHE.lstrip("/"), ignore_errors=True)
    if sort != "warm":
        forget(root)
    device.put_recording()
    device.start()
    sent_us = device.wait_for("sent")[0]["sent_us"]
    kept_us = device.wait_for("acknowledged")[0]["timestamp_us"]
    device.stop()
    return (sent_us - device.started_us) / 1e6, (kept_us - device.started_us) / 1e6


def benchmark(folder: Path, model: Model, records: int, starts: int) -> dict:
    """The figures of one installation in an empty ``folder``. Raises ``TestbedError``."""
    root = folder / "root"
    receivers = load_bundle(model.bundle).manifest["acquisition"]["device_receivers"]
    keys = make_keys(folder / "keys", len(receivers))
    parts = np.stack([sample.gather for sample in load_samples()])[..., receivers[0]]
    with Processes() as processes:
        centre = Deployment(processes, model, folder, keys).start_centre(deadline_s=1.0)
        install(model, root, keys, centre.wait_for("ready", TIMEOUT_S)["endpoint"])
        installed = disk_bytes(root)
        device = Device(root, parts)
        try:
            times_s = {sort: [measure_start(device, root, sort) for _ in range(starts)] for sort in SORTS}
            for _ in range(records):
                device.put_recording()
            device.start()
            device.wait_for("acknowledged", records)
            peak = device.peak_bytes()
            device.stop()
        finally:
            device.kill()
    return {
        "installed_mb": round(installed / 1e6, 1),
        "compiled_mb": round(disk_bytes(root / CACHE.lstrip("/")) / 1e6, 1),
        "packages_mb": round(disk_bytes(*(root / PREFIX.lstrip("/")).glob("venv-*")) / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        **{
            f"{sort}_{what}_s": round(statistics.median(row[k] for row in times_s[sort]), 2)
            for sort in SORTS
            for k, what in enumerate(("sent", "kept"))
        },
        "worst_kept_s": round(max(row[1] for rows in times_s.values() for row in rows), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of models/zoo; default: that of `epic testbed`")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--starts", type=int, default=7, help="of each sort")
    parser.add_argument("--folder", type=Path, help="where to install; default: the system's /tmp")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.records < 1 or given.starts < 1:
        parser.error("expected at least one of --records and of --starts")
    try:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            model = find_model(given.model)
            found = benchmark(Path(folder).resolve(), model, given.records, given.starts)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    disk_mb = found["installed_mb"] + found["compiled_mb"]
    holds = disk_mb < DISK_MB and found["peak_mb"] < MEMORY_MB and found["worst_kept_s"] < START_S
    if given.json:
        print(
            json.dumps({"model": model.bundle.parent.name, "starts": given.starts, "holds": holds, **found})
        )
        return 0 if holds else 1
    print(
        f"{model.bundle.parent.name}: {found['installed_mb']} MB installed, of which packages {found['packages_mb']}; "
        f"{found['compiled_mb']} MB of modules that the first start compiles"
    )
    for sort in SORTS:
        print(
            f"{sort:<8} start to first record: sent {found[f'{sort}_sent_s']:.2f} s, at the centre "
            f"{found[f'{sort}_kept_s']:.2f} s (median of {given.starts})"
        )
    print(
        f"{disk_mb:.0f} MB on disk (of {DISK_MB}), {found['peak_mb']:.0f} MB of memory at most over {given.records} "
        f"records (of {MEMORY_MB}), first record at the centre {found['power-up_kept_s']:.2f} s after power-up, "
        f"{found['worst_kept_s']:.2f} s at worst (of {START_S:.0f})"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
