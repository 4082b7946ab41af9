"""Run one system over one link: its centre, its devices, and a proxy between each device and the centre."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from central.fleet.rates import ALL, keep_rate
from firmware_py.protocol.rate import Rate
from firmware_py.runtime.node import SET_BYTES
from firmware_py.storage.spool import Spool
from physics.acquisition import Acquisition
from physics.files.openfwi_files import create_array
from testbed.comparison.accounting import ConditionAccount, EventRow, baseline_rows, epic_rows
from testbed.comparison.baseline_centre import BaselineCentre
from testbed.comparison.baseline_device import BaselineDevice
from testbed.emulation.links import LinkProfile, open_proxies, set_conditions
from testbed.emulation.proxy import Proxy
from testbed.errors import TestbedError
from testbed.processes import Process, Processes
from testbed.run import Deployment, Model

START_TIMEOUT_S = 90.0
# EPIC at the full rate (epic), with 4 bits per value (epic-4bit), or with a number of bytes per latent (epic-32).
EPIC = re.compile(r"epic(?:-(4bit|\d+))?")
# Deadline of a centre for a missing device, seconds.
DEADLINE_S = 2.0
MISSING_DEVICE = 2
# Event interval: a minimum plus a multiple of an event's link time, so that events never overlap.
LEAST_INTERVAL_S = 0.4
MARGIN = 1.5
LONGEST_RUN_S = 1800.0


@dataclass(frozen=True)
class Condition:
    """Link condition for ``share`` of a run's events (at least 4); ``loss`` None is the link's own."""

    name: str
    loss: float | None = None
    missing: bool = False
    share: float = 0.25


CONDITIONS = (
    Condition("as it is", share=1.0),
    Condition("1 % loss", loss=0.01),
    Condition("5 % loss", loss=0.05),
    Condition("a device missing", missing=True),
)


def is_epic(system: str) -> bool:
    """Return True for EPIC at any rate."""
    return EPIC.fullmatch(system) is not None


def latent_bytes(system: str, values: int) -> int | None:
    """Return the bytes of a latent of ``values`` for EPIC at a reduced rate; None for other systems."""
    named = EPIC.fullmatch(system)
    if not named or not named[1]:
        return None
    return Rate(values, bits=4).payload_bytes if named[1] == "4bit" else int(named[1])


@dataclass(frozen=True)
class Comparison:
    """One comparison: systems, links and events (``gathers (n, S, T, R)`` float32)."""

    out: Path
    model: Model
    acquisition: Acquisition
    keys: Path
    gathers: np.ndarray
    # Values of EPIC's latent.
    latent: int
    # Bytes of one device's message, by system.
    message_bytes: dict[str, int]


def check_length(
    system: str, profile: LinkProfile, counts: list[int], message_bytes: int, n_devices: int
) -> None:
    """Raise ``TestbedError`` if the link is too slow for the system to finish in reasonable time."""
    lasts_s = sum(
        count * interval(under(profile, condition), condition, message_bytes, n_devices)
        for count, condition in zip(counts, CONDITIONS, strict=True)
    )
    if lasts_s > LONGEST_RUN_S:
        raise TestbedError(
            f"{system} over {profile.name} would take {lasts_s / 60:.0f} minutes; give fewer --events, or leave "
            "out that system or link"
        )


def under(profile: LinkProfile, condition: Condition) -> LinkProfile:
    """Apply the condition to the link."""
    return profile if condition.loss is None else replace(profile, loss=condition.loss)


def interval(profile: LinkProfile, condition: Condition, message_bytes: int, n_devices: int) -> float:
    """Return the seconds between a device's events, so that events never overlap."""
    rate = profile.rate_bytes_per_s(profile.up_bytes_per_s)
    on_link_s = message_bytes * (n_devices if profile.shared else 1) / rate if rate else 0.0
    return LEAST_INTERVAL_S + MARGIN * on_link_s + (DEADLINE_S if condition.missing else 0.0)


class Run:
    """One system over one link."""

    def __init__(self, comparison: Comparison, system: str, profile: LinkProfile) -> None:
        self._all = comparison
        self._system = system
        self._profile = profile
        self._folder = comparison.out / f"{system}-{profile.name}"
        self._n = comparison.acquisition.n_devices

    def conditions(self, counts: list[int], on_step: Callable[[str], None]) -> list[ConditionAccount]:
        """Run every condition in turn, each on its share of the consecutively numbered events."""
        self._folder.mkdir()
        with create_array(self._folder / "gathers.npy", self._all.gathers.shape) as gathers:
            gathers[:] = self._all.gathers
        accounts = []
        with Processes() as processes:
            on_step(f"{self._system} over {self._profile.name}: starting")
            deployment = Deployment(processes, self._all.model, self._folder, self._all.keys)
            centre = self._start_centre(deployment)
            port = int(centre.wait_for("ready", START_TIMEOUT_S)["endpoint"].rsplit(":", 1)[1])
            with _proxies(open_proxies(self._profile, port, self._n)) as proxies:
                first = 1
                for condition, count in zip(CONDITIONS, counts, strict=True):
                    on_step(f"{self._system} over {self._profile.name}: {condition.name}")
                    profile = under(self._profile, condition)
                    set_conditions(proxies, profile)
                    accounts.append(
                        self._condition(deployment, centre, proxies, profile, condition, first, count)
                    )
                    first += count
            centre.end()
        return accounts

    def _condition(
        self,
        deployment: Deployment,
        centre: Process,
        proxies: list[Proxy],
        profile: LinkProfile,
        condition: Condition,
        first: int,
        count: int,
    ) -> ConditionAccount:
        present = [d for d in range(self._n) if not (condition.missing and d == MISSING_DEVICE)]
        before = [(len(proxy.sent), len(proxy.received)) for proxy in proxies]
        interval_s = interval(profile, condition, self._all.message_bytes[self._system], self._n)
        devices = {
            device: self._start_device(deployment, device, proxies[device], first, count, interval_s)
            for device in present
        }
        timeout_s = START_TIMEOUT_S + 3 * count * interval_s
        deadline_s = time.monotonic() + timeout_s
        last = first + count - 1
        while len(rows := self._rows(centre, devices, first, last)) < count:
            for process in (centre, *devices.values()):
                if process.exit_code:
                    raise TestbedError(f"{process.name}: {process.complaint()}")
            if time.monotonic() > deadline_s:
                raise TestbedError(
                    f"{self._system} over {self._profile.name}, {condition.name}: {len(rows)} of {count} maps "
                    f"after {timeout_s:.0f} s; see the logs in {self._folder}"
                )
            time.sleep(0.1)
        for process in devices.values():
            process.wait()
        statistics = [process.entries("statistics")[-1] for process in devices.values()]
        transfers = [
            (proxy.sent[sent:], proxy.received[received:])
            for proxy, (sent, received) in zip(proxies, before, strict=True)
        ]
        return ConditionAccount(rows, statistics, transfers)

    def _rows(
        self, centre: Process, devices: dict[int, Process], first: int, last: int
    ) -> dict[int, EventRow]:
        if is_epic(self._system):
            return epic_rows(self._folder / "central", devices, first, last)
        return baseline_rows(centre, devices, self._folder / "maps", first, last)

    def _start_centre(self, deployment: Deployment) -> Process:
        if is_epic(self._system):
            self._set_rate()
            return deployment.start_centre(deadline_s=DEADLINE_S)
        (self._folder / "maps").mkdir()
        config = BaselineCentre(
            self._system,
            self._n,
            "tcp://127.0.0.1:*",
            str(self._all.keys),
            str(self._all.out),
            DEADLINE_S,
            str(self._folder / "maps"),
            str(self._folder / "central.jsonl"),
        )
        return self._start(deployment.processes, "central", "testbed.comparison.baseline_centre", config)

    def _set_rate(self) -> None:
        """Set the rate as the centre would have done before the run; devices use it from the first event."""
        rate = latent_bytes(self._system, self._all.latent)
        if rate is None:
            return
        keep_rate(self._folder / "central", ALL, rate)
        for device in range(self._n):
            path = self._folder / f"device{device}" / "spool.sqlite"
            with closing(Spool(path, max_records=1, device=device)) as spool:
                spool.keep(SET_BYTES, rate)

    def _start_device(
        self, deployment: Deployment, device: int, proxy: Proxy, first: int, count: int, interval_s: float
    ) -> Process:
        endpoint = f"tcp://127.0.0.1:{proxy.port}"
        if is_epic(self._system):
            return deployment.start_device(device, endpoint, interval_s, first + count - 1)
        config = BaselineDevice(
            self._system,
            device,
            list(self._all.acquisition.device_receivers[device]),
            str(self._folder / "gathers.npy"),
            first,
            first + count - 1,
            interval_s,
            endpoint,
            str(self._all.keys / f"device-{device}"),
            str(self._all.out),
            str(self._folder / f"device{device}.jsonl"),
        )
        return self._start(
            deployment.processes, f"device{device}", "testbed.comparison.baseline_device", config
        )

    def _start(
        self, processes: Processes, name: str, module: str, config: BaselineCentre | BaselineDevice
    ) -> Process:
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(asdict(config)))
        return processes.start(name, ["-m", module, str(path)], self._folder)


@contextmanager
def _proxies(proxies: list[Proxy]) -> Iterator[list[Proxy]]:
    try:
        yield proxies
    finally:
        for proxy in proxies:
            proxy.close()
