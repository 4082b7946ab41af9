"""``epic testbed run``: run the whole system on this machine, from gathers to maps, and account for it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from central.config import ModelSection
from central.export.render import Row, draw_comparison
from central.security.keys import allow, new_keys
from central.storage.map_store import Store, StoredMap
from firmware_py.inference.bundle import load_bundle
from models.released import DEFAULT_NAME, ZOO, find_release
from physics.acquisition import Acquisition
from physics.files.openfwi_files import create_array, open_pair
from testbed.accounting import account
from testbed.errors import TestbedError
from testbed.processes import NATIVE, Process, Processes, Runtime
from testbed.recordings import (
    draw_story,
    fetch_recordings,
    least_certain,
    refine_fetched,
    summarise,
)
from testbed.samples import Sample, SamplesError, load_samples

DEFAULT_MODEL = ZOO / DEFAULT_NAME
ROWS_A_PICTURE = 10
START_TIMEOUT_S = 120.0
# Interval between events, so that the measured latency has no queueing.
INTERVAL_S = 0.1
# Marks a run folder. Not central.toml: a production centre has one too, beside its keys and data.
MARKER = ".epic-testbed"


@dataclass(frozen=True)
class Model:
    """The devices' bundle, and the centre's decoder with its own bundle."""

    device_bundle: Path
    bundle: Path
    decoder: Path


def find_model(model: str | Path | None, device_bundle: Path | None = None) -> Model:
    """Return a released model by its name or folder, by default one that fits a microcontroller."""
    folder = find_release(model or DEFAULT_NAME)
    bundle = folder / "bundle"
    return Model(device_bundle or bundle, bundle, folder / "decoder")


def load_events(data: list[Path], count: int, acquisition: Acquisition) -> list[Sample]:
    """Load ``count`` events from OpenFWI gather files and the maps beside them, or the shipped samples.

    If there are fewer than ``count``, they repeat from the start. 0 takes every gather once. Raises
    ``OpenFWIFileError``, ``SamplesError``.
    """
    if not data:
        samples = load_samples()
        if samples[0].gather.shape != acquisition.gather_shape:
            raise SamplesError(
                f"samples: the shipped gathers are {samples[0].gather.shape}, the model's survey records "
                f"{acquisition.gather_shape}; give gathers of its own with --data"
            )
    else:
        samples = []
        for path in data:
            pair = open_pair(path, acquisition)
            gathers, maps = pair.gathers(), pair.maps() if pair.map_path else None
            for i in range(min(len(gathers), count - len(samples)) if count else len(gathers)):
                map_mps = None if maps is None else np.asarray(maps[i, 0])
                samples.append(Sample(pair.family, np.asarray(gathers[i], np.float32), map_mps))
    count = count or len(samples)
    return [samples[i % len(samples)] for i in range(count)]


@dataclass(frozen=True)
class RunOptions:
    """How a run's processes start, and what follows its maps.

    Attributes:
        port: Port of the centre; 0 takes a free one.
        insecure: Send in the clear. By default the links use CURVE with keys made for the run.
        timeout_s: Time for all maps, beside the interval between events.
        devices_on: Runs the devices natively or emulated (``testbed.arm64.runtime``).
        fetch: Fetch the recordings of this many events afterwards, those of the least certain maps.
        refine_iterations: Then refine the fetched events' maps in this many iterations; ``refined.png`` shows them.
    """

    port: int = 0
    insecure: bool = False
    timeout_s: float = 60.0
    devices_on: Runtime = NATIVE
    fetch: int = 0
    refine_iterations: int = 0


def run_testbed(
    model: Model,
    data: list[Path],
    count: int,
    out: Path,
    options: RunOptions,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict:
    """Replay ``count`` events through five device processes and a centre; return the results.

    ``out`` becomes the run folder with ``results.json``, ``maps-*.png``, and each process's configuration and log.

    Raises:
        TestbedError: A process failed; the message holds its last output. Errors of the inputs are passed on.
    """
    bundle = load_bundle(model.bundle)
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    events = load_events(data, count, acquisition)
    _check_finite(events)
    prepare_folder(out)
    with create_array(out / "gathers.npy", (len(events), *acquisition.gather_shape)) as gathers:
        for i, event in enumerate(events):
            gathers[i] = event.gather
    with Processes() as processes:
        on_step("starting the centre")
        keys = None if options.insecure else make_keys(out / "keys", acquisition.n_devices)
        deployment = Deployment(processes, model, out, keys, options.devices_on)
        centre = deployment.start_centre(options.port)
        endpoint = centre.wait_for("ready", START_TIMEOUT_S)["endpoint"]
        on_step(f"{acquisition.n_devices} devices send")
        numbers = range(acquisition.n_devices)
        devices = [deployment.start_device(number, endpoint) for number in numbers]
        _wait_for_maps(devices, centre, out / "central", len(events), options.timeout_s, on_step)
        for process in devices:
            process.wait()
        maps = {stored.event: stored for stored in Store(out / "central").newest()}
        rows = account(devices, out / "central", maps, events, acquisition)
        fetched: dict[int, dict] = {}
        if options.fetch:
            devices = [deployment.start_device(number, endpoint, stays=True) for number in numbers]
            chosen = least_certain(maps, options.fetch)
            fetched = fetch_recordings(out / "central", chosen, devices, centre, on_step)
            for process in devices:
                process.end()
        centre.end()
        centre.wait()
    if fetched:
        refined: dict[int, dict] = {}
        if options.refine_iterations:
            section = ModelSection(bundle=model.bundle, decoder=model.decoder)
            refined = refine_fetched(out, section, list(fetched), options.refine_iterations, on_step)
        rows["fetched"] = summarise(out / "central", events, maps, fetched, refined)
        by_event = {row["event"]: row for row in rows["events"]}
        draw_story(out / "refined.png", out / "central", events, maps, by_event, rows["fetched"], acquisition)
    on_step("drawing")
    _draw(out, events, maps, acquisition)
    results = {
        **rows,
        "links": "zmq in the clear" if options.insecure else "zmq with CURVE",
        "devices_on": options.devices_on.description,
        "model": bundle.name,
        "model_hash": bundle.model_hash.hex(),
        "folder": str(out),
    }
    (out / "results.json").write_text(json.dumps(results, indent=2))
    return results


def _check_finite(events: list[Sample]) -> None:
    for number, event in enumerate(events, start=1):
        bad = int(np.size(event.gather) - np.isfinite(event.gather).sum())
        if bad:
            raise TestbedError(f"event {number}: {bad} samples are NaN or infinite; mend the recording")


def prepare_folder(out: Path) -> None:
    """Create an empty run folder, replacing an earlier run; raise an error for any other content."""
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists()):
            raise TestbedError(
                f"{out}: exists and is not a testbed run; choose another --out, or remove it yourself"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def make_keys(folder: Path, n_devices: int) -> Path:
    """Create keys for a centre and its devices, and allow all devices."""
    for device in range(n_devices):
        new_keys(folder, f"device-{device}")
        allow(folder, f"device-{device}")
    return folder


@dataclass(frozen=True)
class Deployment:
    """A centre and its devices, each a process with its configuration, log and data in ``folder``.

    Attributes:
        processes: Starts the processes and ends them.
        model: What the devices and the centre run.
        folder: Run folder; its gathers.npy is replayed.
        keys: Keys of ``make_keys``; None sends in the clear.
        devices_on: Runs the devices.
    """

    processes: Processes
    model: Model
    folder: Path
    keys: Path | None
    devices_on: Runtime = NATIVE

    def start_centre(self, port: int = 0, deadline_s: float = 10.0) -> Process:
        """Start `epic central run` on ``port``; 0 picks a free one."""
        config = self.folder / "central.toml"
        security = f'keys = "{self.keys.resolve()}"' if self.keys else "insecure = true"
        listen = f"tcp://127.0.0.1:{port or '*'}"
        config.write_text(
            f'[central]\nlisten = "{listen}"\n{security}\ndata_dir = "central"\nlog = "central.jsonl"\n'
            f"pictures = false\ndeadline_s = {deadline_s}\n"
            f'[[model]]\nbundle = "{self.model.bundle.resolve()}"\ndecoder = "{self.model.decoder.resolve()}"\n'
        )
        arguments = ["-m", "epic", "central", "run", "--config", str(config)]
        return self.processes.start("central", arguments, self.folder)

    def start_device(
        self,
        device: int,
        endpoint: str,
        interval_s: float = INTERVAL_S,
        limit: int = 0,
        stays: bool = False,
    ) -> Process:
        """Start a device that replays gathers.npy up to event ``limit`` (0: all) from its last position.

        It ends when all records are acknowledged. With ``stays`` it waits for requests, which reach it within a second.
        """
        name = f"device{device}"
        config = self.folder / f"{name}.toml"
        own = f"{self.keys and self.keys.resolve()}/device-{device}"
        security = (
            f'server_key = "{own}/centre.public"\npublic_key = "{own}/device-{device}.public"\n'
            f'secret_key = "{own}/device-{device}.secret"\n'
            if self.keys
            else "insecure = true\n"
        )
        config.write_text(
            f'[node]\ndevice = {device}\nstate_dir = "{name}"\nbundle = "{self.model.device_bundle.resolve()}"\n'
            f'[link]\nendpoint = "{endpoint}"\n{security}'
            f'[source]\nkind = "files"\npaths = ["gathers.npy"]\ninterval_s = {interval_s}\nlimit = {limit}\n'
            f'[run]\nexit_when_drained = {"false" if stays else "true"}\nlog = "{name}.jsonl"\n'
            + ("[health]\ninterval_s = 1\n" if stays else "")
        )
        arguments = ["-m", "firmware_py", "run", "--config", str(config)]
        return self.processes.start(name, arguments, self.folder, self.devices_on)


def _wait_for_maps(
    devices: list[Process],
    centre: Process,
    data_dir: Path,
    count: int,
    timeout_s: float,
    on_step: Callable[[str], None],
) -> None:
    deadline = time.monotonic() + timeout_s + count * INTERVAL_S
    store = Store(data_dir)
    try:
        while True:
            complete = sum(not stored.partial for stored in store.newest())
            on_step(f"{complete} of {count} maps")
            if complete == count:
                return
            for process in devices:
                if process.exit_code:
                    raise TestbedError(f"{process.name}: {process.complaint()}")
            if centre.exit_code is not None:
                raise TestbedError(f"centre: {centre.complaint()}")
            if time.monotonic() > deadline:
                silent = [process.name for process in devices if process.exit_code is None]
                raise TestbedError(
                    f"{complete} of {count} maps after {timeout_s:.0f} s; still at work: "
                    f"{', '.join(silent) or 'no device'}; see the logs in {data_dir.parent}"
                )
            time.sleep(0.1)
    finally:
        store.close()


def _draw(out: Path, events: list[Sample], maps: dict[int, StoredMap], acquisition: Acquisition) -> None:
    rows = [
        Row(
            f"event {number}, {event.family}",
            event.map_mps,
            maps[number].velocity_mps,
            maps[number].uncertainty_mps,
        )
        for number, event in enumerate(events, start=1)
    ]
    for page, first in enumerate(range(0, len(rows), ROWS_A_PICTURE), start=1):
        draw_comparison(out / f"maps-{page}.png", rows[first : first + ROWS_A_PICTURE], acquisition)
