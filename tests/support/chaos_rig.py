"""Five device processes and a centre's, with a link that can be broken between each device and the centre."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from chaos_tally import Tally, tally
from chaos_world import World, tiny_world
from ports import free_port

from central.security.keys import allow, new_keys
from central.storage.journal import Journal
from testbed.emulation.proxy import Proxy
from testbed.emulation.serial_emulator import EmulatedSerial
from testbed.emulation.shaping import Conditions
from testbed.errors import TestbedError
from testbed.processes import Process

CENTRE = Path(__file__).with_name("centre_process.py")
LINKS = ("zmq", "zmq-curve", "tcp", "tcp-mac", "serial", "serial-mac")
START_TIMEOUT_S = 120.0


class Rig:
    """All of a run in ``folder``. ``link`` is one of ``LINKS``; what follows a dash says how it is secured.

    ``interval_s`` is between a device's recordings. ``centre_dir`` and ``state_dir`` may be other disks;
    devices' own state is ``state_dir``/device-N. Without ``replay`` device N watches ``folder``/incoming-N.
    """

    def __init__(
        self,
        folder: Path,
        events: int,
        link: str = "zmq-curve",
        interval_s: float = 0.0,
        resend_s: float = 0.5,
        world: World | None = None,
        centre_dir: Path | None = None,
        state_dir: Path | None = None,
        baud: int = 115_200,
        spool_records: int = 10_000,
        seed: int = 0,
        replay: bool = True,
    ) -> None:
        self._replay = replay
        self.folder, self.events, self.link = folder, events, link
        self.world = world or tiny_world(folder)
        self.data_dir = centre_dir or folder / "central"
        self._state_dir = state_dir or folder
        self._kind, _, security = link.partition("-")
        self._secured = bool(security)
        self._processes: dict[str, Process] = {}
        self.proxies: list[Proxy] = []
        self.lines: list[EmulatedSerial] = []
        np.save(folder / "gathers.npy", self.world.gathers)
        n_devices = self.world.n_devices
        if self._secured:
            for device in range(n_devices):
                new_keys(folder / "keys", f"device-{device}")
                allow(folder / "keys", f"device-{device}")
        Journal(self.data_dir).close()
        port, gateway_port = free_port(), free_port()
        if self._kind == "serial":
            self.lines = [EmulatedSerial(baud, seed=seed + device) for device in range(n_devices)]
        else:
            target = gateway_port if self._kind == "tcp" else port
            self.proxies = [Proxy(target, seed=seed + device) for device in range(n_devices)]
        self._write_centre(port, gateway_port, baud)
        for device in range(n_devices):
            self._write_device(device, interval_s, resend_s, baud, spool_records)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
        for end in (*self.proxies, *self.lines):
            end.close()

    @property
    def centre(self) -> Process:
        return self._processes["central"]

    def device(self, device: int) -> Process:
        return self._processes[f"device{device}"]

    def state_dir(self, device: int) -> Path:
        return self._state_dir / f"device-{device}"

    def incoming(self, device: int) -> Path:
        """The folder that a device watches."""
        return self.folder / f"incoming-{device}"

    def start(self) -> None:
        """The centre, and when it listens every device."""
        self.start_centre()
        self.centre.wait_for("ready", START_TIMEOUT_S)
        for device in range(self.world.n_devices):
            self.start_device(device)

    def start_centre(self) -> None:
        config = str(self.folder / "central.toml")
        command = ["-m", "epic", "central", "run", "--config"] if self.world.decoder else [str(CENTRE)]
        self._processes["central"] = Process("central", [*command, config], self.folder)

    def start_device(self, device: int) -> None:
        name = f"device{device}"
        config = str(self.folder / f"{name}.toml")
        self._processes[name] = Process(name, ["-m", "firmware_py", "run", "--config", config], self.folder)

    def running_devices(self) -> list[int]:
        """Devices that are at work. Raises ``TestbedError`` for a process that failed."""
        if self.centre.exit_code not in (None, -signal.SIGKILL):
            raise TestbedError(f"centre: {self.centre.complaint()}")
        running = []
        for device in range(self.world.n_devices):
            code = self.device(device).exit_code
            if code is None:
                running.append(device)
            elif code not in (0, -signal.SIGKILL):
                raise TestbedError(f"device {device}: {self.device(device).complaint()}")
        return running

    def ways(self) -> list[tuple[Conditions, Conditions]]:
        """(up, down) of every device's link."""
        return [(end.up, end.down) for end in (*self.proxies, *self.lines)]

    def bit_errors(self) -> int:
        """Bits that went wrong on the links so far."""
        return sum(end.bit_errors for end in (*self.proxies, *self.lines))

    def journalled(self) -> int:
        """Records in the centre's journal."""
        return self._count("SELECT count(*) FROM record")

    def devices_seen(self) -> int:
        """Devices with a record in the centre's journal."""
        return self._count("SELECT count(DISTINCT device) FROM record")

    def finish(self, timeout_s: float = 300.0) -> Tally:
        """Wait until every device has drained and every map is drawn, end the centre, and count.

        Raises ``TestbedError`` when nothing new is acknowledged for ``timeout_s``.
        """
        total = self.world.n_devices * self.events
        before, deadline_s = (-1, -1), 0.0
        while self.running_devices() or self.journalled() < total or self._maps() < self.events:
            if (now := (self.journalled(), self._maps())) != before:
                before, deadline_s = now, time.monotonic() + timeout_s
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.1)
        self.centre.end()
        return self.tally()

    def tally(self) -> Tally:
        logs = [self.device(device).entries() for device in range(self.world.n_devices)]
        return tally(self.world, logs, self.data_dir, self.events)

    def _maps(self) -> int:
        return self._count("SELECT count(DISTINCT event) FROM map WHERE NOT partial")

    def _count(self, query: str) -> int:
        database = sqlite3.connect(self.data_dir / "central.sqlite", timeout=10.0)
        try:
            return database.execute(query).fetchone()[0]
        finally:
            database.close()

    def _write_centre(self, port: int, gateway_port: int, baud: int) -> None:
        security = 'keys = "keys"' if self._secured else "insecure = true"
        gateway = ""
        if self._kind == "tcp":
            gateway = f'[gateway]\ntcp = "127.0.0.1:{gateway_port}"\n'
        elif self._kind == "serial":
            gateway = f"[gateway]\nports = {[line.centre_path for line in self.lines]}\nbaud = {baud}\n"
        (self.folder / "central.toml").write_text(
            f'[central]\nlisten = "tcp://127.0.0.1:{port}"\n{security}\ndata_dir = "{self.data_dir}"\n'
            f'log = "central.jsonl"\npictures = false\n'
            f'[[model]]\nbundle = "bundle"\ndecoder = "{self.world.decoder or "none"}"\n{gateway}'
        )

    def _write_device(
        self, device: int, interval_s: float, resend_s: float, baud: int, spool_records: int
    ) -> None:
        own = f"keys/device-{device}"
        if not self._secured:
            security = "insecure = true\n"
        elif self._kind == "zmq":
            security = (
                f'server_key = "{own}/centre.public"\npublic_key = "{own}/device-{device}.public"\n'
                f'secret_key = "{own}/device-{device}.secret"\n'
            )
        else:
            security = f'secret = "{own}/device-{device}.mac"\n'
        endpoint = {
            "zmq": lambda: f"tcp://127.0.0.1:{self.proxies[device].port}",
            "tcp": lambda: f"127.0.0.1:{self.proxies[device].port}",
            "serial": lambda: self.lines[device].device_path,
        }[self._kind]()
        if self._replay:
            repeats = -(-self.events // len(self.world.gathers))
            source = (
                f'kind = "files"\npaths = {["gathers.npy"] * repeats}\n'
                f"interval_s = {interval_s}\nlimit = {self.events}\n"
            )
        else:
            self.incoming(device).mkdir()
            source = f'kind = "folder"\npath = "{self.incoming(device)}"\npoll_s = 0.1\n'
        (self.folder / f"device{device}.toml").write_text(
            f'[node]\ndevice = {device}\nstate_dir = "{self.state_dir(device)}"\nbundle = "bundle"\n'
            f"spool_records = {spool_records}\n"
            f'[link]\nkind = "{self._kind}"\nendpoint = "{endpoint}"\nbaud = {baud}\n'
            f"resend_s = {resend_s}\n{security}"
            f"[source]\n{source}"
            f'[run]\nexit_when_drained = true\nlog = "device{device}.jsonl"\n'
        )
