"""Five device processes on an emulated arm64 processor, over CURVE to a centre of this machine's own."""

import json
from pathlib import Path

import numpy as np
import pytest

import epic
from central.storage.journal import Journal
from central.storage.map_store import Store
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.encoder import Encoder
from physics.acquisition import Acquisition
from testbed import arm64
from testbed.errors import TestbedError
from testbed.run import find_model
from testbed.samples import load_samples

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
RELEASED = find_model(None).bundle
# Four shipped gathers and their mirror images, of five parts each; benchmarks/device/agreement.py has more.
SHIPPED = 4
PARTS = 2 * SHIPPED * 5


@pytest.fixture
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def emulator(in_the_checkout):
    try:
        return arm64.runtime()
    except TestbedError as error:
        pytest.skip(str(error))


@pytest.mark.emulated
@pytest.mark.long
def test_emulated_devices_draw_maps_from_the_latents_that_this_machine_would_send(emulator, capsys, tmp_path):
    gathers = write_events(tmp_path / "FlatVel_A")
    out = tmp_path / "run"
    data = str(tmp_path / "FlatVel_A" / "data1.npy")
    code = epic.main(
        ["testbed", "run", "--json", "--device-arch", "arm64", "--data", data, "--out", str(out)]
    )
    shown = capsys.readouterr()
    assert code == 0, shown.err
    results = json.loads(shown.out)
    assert results["links"] == "zmq with CURVE"
    assert results["devices_on"].startswith("arm64, emulated")
    assert results["total"]["maps"] == len(gathers)
    assert results["total"]["devices_present"] == [0, 1, 2, 3, 4]
    assert results["total"]["lost"] == 0

    bundle = load_bundle(RELEASED)
    native = Encoder(bundle)
    acquisition = Acquisition.from_dict(bundle.manifest["acquisition"])
    differences = []
    for event, device, latent in received(out / "central"):
        receivers = list(acquisition.device_receivers[device])
        expected = native.encode_recording(gathers[event - 1][:, :, receivers])
        differences.append(np.abs(latent.astype(int) - expected))
    assert len(differences) == PARTS
    assert np.max(differences) <= 1
    # Latents that hardly differ from one another would be near each other whatever was computed.
    assert np.std([latent for _, _, latent in received(out / "central")], axis=0).mean() > 5


def write_events(folder: Path) -> np.ndarray:
    """Gathers with maps in ``folder``: shipped ones and, left for right, their mirror images."""
    samples = load_samples()[:: len(load_samples()) // SHIPPED][:SHIPPED]
    gathers = np.stack([sample.gather for sample in samples])
    maps = np.stack([sample.map_mps for sample in samples])[:, None]
    gathers = np.concatenate([gathers, gathers[:, ::-1, :, ::-1]])
    folder.mkdir()
    np.save(folder / "data1.npy", gathers)
    np.save(folder / "model1.npy", np.concatenate([maps, maps[..., ::-1]]).astype(np.float32))
    return gathers


def received(data_dir: Path) -> list[tuple[int, int, np.ndarray]]:
    """Event, device and latent of every record that the centre committed."""
    journal = Journal(data_dir)
    try:
        return [
            (stored.event, record.device, np.frombuffer(record.payload, np.int8))
            for stored in Store(data_dir).newest()
            for record in journal.of_event((stored.survey, stored.event, stored.model_hash))
        ]
    finally:
        journal.close()


def test_without_qemu_the_package_to_install_is_named(in_the_checkout, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert epic.main(["testbed", "run", "--device-arch", "arm64", "--out", str(tmp_path / "run")]) == 2
    assert (
        "qemu-aarch64-static: not found; install it with apt-get install qemu-user-static"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_without_the_arm64_python_the_command_that_makes_it_is_named(monkeypatch, capsys, tmp_path):
    (tmp_path / "qemu-aarch64-static").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert epic.main(["testbed", "run", "--device-arch", "arm64"]) == 2
    assert "no arm64 Python there; make it with `epic testbed arm64`" in capsys.readouterr().err


def test_a_folder_of_someone_else_is_not_replaced(tmp_path):
    (tmp_path / "arm64").mkdir()
    (tmp_path / "arm64" / "thesis.tex").write_text("do not lose me")
    with pytest.raises(TestbedError, match="exists and is not an arm64 root of EPIC"):
        arm64.prepare(tmp_path / "arm64")
    assert (tmp_path / "arm64" / "thesis.tex").exists()


def test_what_apt_says_is_passed_on(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    says = "echo 'E: Unable to locate package python3.11-minimal'; exit 100"
    for name, script in {"apt-get": says, "dpkg-deb": "exit 0"}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder))
    with pytest.raises(
        TestbedError, match=r"Unable to locate package python3\.11-minimal; Debian 12 .* is expected"
    ):
        arm64.prepare(tmp_path / "arm64")
    assert not (tmp_path / "arm64").exists()
