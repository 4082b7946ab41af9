"""Real devices and a real centre: `epic central rollout` while both are at work."""

import json
import threading

import numpy as np
import pytest
from fake_decoder import FakeDecoder
from releases import KEY, make_release, write_public_key
from tiny import ENCODER, SHAPE
from waiting import wait_until

import epic
from central.config import load_config as load_central
from central.service import Service
from central.storage.database import connect
from central.storage.map_store import Store
from central.updates import rollout
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.self_test import VECTORS, encode_vectors
from firmware_py.runtime.config import load_config as load_node
from firmware_py.runtime.log import Log
from firmware_py.runtime.run import run_device
from firmware_py.updates import updater as update

pytestmark = pytest.mark.slow


class TinyDecoder(FakeDecoder):
    """For the tiny encoder's latents, of as many devices as the test has."""

    n_devices = 3
    latent = 8


def load_tiny(section):
    return load_bundle(section.bundle).model_hash, TinyDecoder()


class Field:
    """A centre and three devices on threads, on folders that gathers are put into."""

    def __init__(self, folder):
        self.folder = folder
        make_release(folder / "old", "old", ENCODER)
        secret = folder / "signing.secret"
        secret.write_text(bytes(KEY).hex())
        secret.chmod(0o600)
        write_public_key(folder / "signing.public")
        self.config = folder / "central.toml"
        self.config.write_text(
            '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\ndeadline_s = 60.0\n'
            'pictures = false\n[[model]]\nbundle = "old"\ndecoder = "-"\n'
        )
        old = {load_bundle(folder / "old").model_hash: TinyDecoder()}
        self.service = Service(load_central(self.config), old, Log(folder / "central.jsonl"), load_tiny)
        self._nodes = {}
        self._threads = [threading.Thread(target=self.service.run)]
        self._threads[0].start()

    def start_device(self, device, health_s=60):
        path = self.folder / f"node{device}.toml"
        path.write_text(
            f'[node]\ndevice = {device}\nbundle = "old"\nstate_dir = "state{device}"\nreceivers = [0, 2]\n'
            f'[link]\nendpoint = "{self.service.receiver.endpoint}"\ninsecure = true\n'
            f'[source]\nkind = "folder"\npath = "incoming{device}"\npoll_s = 0.05\n'
            f'[health]\ninterval_s = {health_s}\n[update]\nkey = "signing.public"\n[run]\nlog = "node{device}.jsonl"\n'
        )
        (self.folder / f"incoming{device}").mkdir()
        config = load_node(path)
        started = threading.Event()

        def on_start(node):
            self._nodes[device] = node
            started.set()

        self._threads.append(threading.Thread(target=run_device, args=(config, on_start)))
        self._threads[-1].start()
        assert started.wait(60)

    def record(self, event, *devices):
        for device in devices:
            part = self.folder / f"event{event:06d}.npy"
            np.save(part, np.full(SHAPE, float(event), np.float32))
            part.rename(self.folder / f"incoming{device}" / part.name)

    def maps(self):
        """Model hash by event."""
        store = Store(self.folder / "data")
        try:
            return {stored.event: stored.model_hash for stored in store.newest()}
        finally:
            store.close()

    def models_of(self, device):
        """Hashes of the models of a device's records at the centre."""
        database = connect(self.folder / "data")
        try:
            rows = database.execute("SELECT model_hash FROM record WHERE device = ? ORDER BY id", (device,))
            return [row[0] for row in rows]
        finally:
            database.close()

    def stop(self):
        for node in self._nodes.values():
            node.stop()
        for thread in self._threads[1:]:
            thread.join()
        self.service.stop()
        self._threads[0].join()


@pytest.fixture
def field(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "POLL_S", 0.05)
    monkeypatch.setattr(update, "REPORT_S", 0.2)
    one = Field(tmp_path)
    yield one
    one.stop()


def roll_out(field, *options):
    key = str(field.folder / "signing.secret")
    return epic.main(["central", "rollout", "--config", str(field.config), "--key", key, *options])


def log_of(field):
    return (field.folder / "central.jsonl").read_text()


def status(field, capsys):
    capsys.readouterr()
    assert epic.main(["central", "rollout", "--status", "--json", "--config", str(field.config)]) == 0
    newest = json.loads(capsys.readouterr().out)[0]
    return newest["stage"], {row["device"]: row["state"] for row in newest["devices"]}, newest["reason"]


def make_model(folder, **options):
    bundle = load_bundle(make_release(folder / "bundle", **options))
    (folder / "decoder").mkdir()
    (folder / "decoder" / "decoder.json").write_text(json.dumps({"model_hash": bundle.model_hash.hex()}))
    return bundle.model_hash


def test_encoders_and_decoder_change_together_one_canary_first(field, tmp_path, capsys):
    old_hash = load_bundle(tmp_path / "old").model_hash
    new_hash = make_model(tmp_path / "model")
    for device in range(3):
        field.start_device(device)
    field.record(1, 0, 1, 2)
    wait_until(lambda: field.maps() == {1: old_hash}, 60, "the first map")

    assert roll_out(field, str(tmp_path / "model"), "--canary", "1") == 0
    wait_until(lambda: "running" in status(field, capsys)[1].values(), 60, "the canary")
    stage, devices, _ = status(field, capsys)
    assert (stage, len(devices)) == ("canary", 1)
    (canary,) = devices
    others = {0, 1, 2} - devices.keys()
    field.record(2, *others)
    for other in others:
        wait_until(lambda other=other: field.models_of(other) == [old_hash] * 2, 60, "records as before")

    field.record(3, canary)
    wait_until(
        lambda: status(field, capsys)[:2] == ("all", dict.fromkeys(range(3), "running")), 60, "the rest"
    )
    field.record(3, *others)
    wait_until(lambda: field.maps().get(3) == new_hash, 60, "a map of the new model")
    assert {device: field.models_of(device)[-1] for device in range(3)} == dict.fromkeys(range(3), new_hash)


def test_an_offer_comes_with_the_answer_to_a_health_record(field, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(update, "REPORT_S", 300.0)
    new_hash = make_model(tmp_path / "model")
    field.start_device(0, health_s=1)
    field.record(1, 0)
    wait_until(lambda: field.models_of(0), 60, "its first record")
    assert roll_out(field, str(tmp_path / "model"), "--canary", "0") == 0
    wait_until(lambda: status(field, capsys)[1] == {0: "running"}, 60, "the update")
    field.record(2, 0)
    wait_until(lambda: field.models_of(0)[-1] == new_hash, 60, "a record of the new model")


def test_a_bundle_that_fails_on_the_canary_reaches_nobody_else(field, tmp_path, capsys):
    wrong = encode_vectors(np.zeros((1, 10, 3, 2), np.int8), np.full((1, 1, 8), 127, np.int8))
    make_model(tmp_path / "model", files={VECTORS: wrong})
    for device in range(2):
        field.start_device(device)
    assert roll_out(field, str(tmp_path / "model")) == 0
    wait_until(lambda: status(field, capsys)[0] == "stopped", 60, "the stop")
    _, devices, reason = status(field, capsys)
    assert list(devices.values()) == ["failed"]
    assert "golden vectors come out" in reason
    assert epic.main(["central", "rollout", "--status", "--config", str(field.config)]) == 0
    shown = capsys.readouterr().out
    assert "stopped" in shown
    assert "golden vectors" in shown
    field.record(1, 0, 1)
    old_hash = load_bundle(tmp_path / "old").model_hash
    for device in range(2):
        wait_until(lambda device=device: field.models_of(device) == [old_hash], 60, "records as before")


def test_what_the_command_cannot_do_is_one_line(field, tmp_path, capsys):
    def complaint(*options):
        assert epic.main(["central", "rollout", "--config", str(field.config), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    make_model(tmp_path / "model")
    assert "expected either a model, or --status, or --stop" in complaint()
    assert "make a signing key with `epic keys new --signing`" in complaint(str(tmp_path / "model"))
    assert "none is in progress" in complaint("--stop")
    assert roll_out(field, str(tmp_path / "model"), "--canary", "0") == 0
    capsys.readouterr()
    key = str(field.folder / "signing.secret")
    assert "is still in progress" in complaint(str(tmp_path / "model"), "--key", key)
    assert epic.main(["central", "rollout", "--stop", "--config", str(field.config)]) == 0
    assert "by the operator" in capsys.readouterr().out
    # In either of its ways: it was taken up before, or is found stopped.
    wait_until(lambda: '"stopped"' in log_of(field) or "rollout_stopped" in log_of(field), 60, "the stop")
    field.start_device(0)
    log = tmp_path / "node0.jsonl"
    wait_until(lambda: log.read_text().count('"type": 5') >= 3, 60, "a device that asked")
    assert status(field, capsys)[:2] == ("stopped", {})
