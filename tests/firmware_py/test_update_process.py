"""The device as a process that is updated: killed at any moment, it has a whole bundle, the old or the new."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_centre import FakeCentre
from releases import FakeRollout, make_release, sign, write_public_key
from tiny import ENCODER, SHAPE
from waiting import wait_until

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.self_test import VECTORS, encode_vectors, self_test
from firmware_py.protocol import packet

pytestmark = pytest.mark.slow

# One of each kind; test_slots.py has a kill between any two writes.
KILLS = 4


@pytest.fixture
def start(tmp_path):
    """Starts a device that is told where to find updates; returns its process."""
    make_release(tmp_path / "bundle", "old", ENCODER)
    write_public_key(tmp_path / "signing.public")
    np.save(tmp_path / "gathers.npy", np.ones((1, *SHAPE), np.float32))
    children = []

    def start_device(endpoint, trial_s=60.0):
        (tmp_path / "node.toml").write_text(
            '[node]\ndevice = 1\nbundle = "bundle"\n'
            f'[link]\nendpoint = "{endpoint}"\ninsecure = true\n'
            '[source]\nkind = "folder"\npath = "incoming"\n'
            f'[update]\nkey = "signing.public"\ntrial_s = {trial_s}\n[run]\nlog = "node.jsonl"\n'
        )
        (tmp_path / "incoming").mkdir(exist_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-m", "firmware_py", "run", "--config", str(tmp_path / "node.toml")],
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start_device
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def archive(tmp_path):
    """A bundle of some 200 kB, so that a download takes many chunks."""
    padding = random.Random(0).randbytes(200_000)
    return sign(make_release(tmp_path / "new", files={"padding.bin": padding}), 7)


def serve(rollout):
    """A centre that answers updates and acknowledges latents."""
    return FakeCentre(lambda r: rollout.answers(r) if r.type == packet.UPDATE else packet.acknowledge(r))


def logged(tmp_path, what):
    path = tmp_path / "node.jsonl"
    # A line of a process that was killed may be cut.
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line for line in map(json.loads, lines) if line["message"] == what]


def in_use(tmp_path):
    """The bundle that the state names, tested as a device tests it."""
    state = json.loads((tmp_path / "state" / "slots" / "state.json").read_text())
    bundle = load_bundle(tmp_path / "state" / "slots" / state["slot"])
    self_test(bundle)
    return bundle.name


def test_killed_at_any_step_of_an_update_a_device_has_a_whole_bundle(start, tmp_path, archive):
    """Some within the download, some about the moment of the switch, some in the trial after it."""
    rng = random.Random(4)
    rollout = FakeRollout(archive, 7)
    slots = tmp_path / "state" / "slots"
    seen, resumed_at = set(), []

    def is_new():
        try:
            return json.loads((slots / "state.json").read_text())["version"] == 7
        except FileNotFoundError:
            return False

    def is_at(offset):
        return is_new() or any(want.offset >= offset for want in rollout.wanted[asked:])

    with serve(rollout) as centre:
        for number in range(KILLS):
            asked = len(rollout.wanted)
            child = start(centre.endpoint)
            if number % 4 < 2:
                offset = rng.randrange(4096, len(archive) - 4096)
                wait_until(lambda offset=offset: is_at(offset), 60, "that chunk")
            elif number % 4 == 2:
                wait_until(lambda: is_at(len(archive) - 4096), 60, "the last chunk")
                time.sleep(rng.uniform(0.0, 0.05))
            else:
                wait_until(is_new, 60, "the switch")
                time.sleep(rng.uniform(0.0, 0.3))
            child.send_signal(signal.SIGKILL)
            child.wait()
            resumed_at += [want.offset for want in rollout.wanted[asked : asked + 1]]
            seen.add(in_use(tmp_path))
            if is_new():
                # Only its trial is left to be killed in: begin again.
                for path in (slots / "state.json", *slots.glob("incoming/*.part")):
                    path.unlink(missing_ok=True)
        child = start(centre.endpoint)
        wait_until(lambda: is_new() and logged(tmp_path, "update_confirmed"), 60, "the update")
    assert in_use(tmp_path) == "new"
    assert seen == {"old", "new"}, "kills fell before a switch and after one"
    assert any(offset > 0 for offset in resumed_at), "a download went on where it was"
    assert child.poll() is None, "the device goes on"


def test_records_after_the_update_carry_the_new_model(start, tmp_path, archive):
    with serve(FakeRollout(archive, 7)) as centre:
        child = start(centre.endpoint)
        wait_until(lambda: logged(tmp_path, "update_confirmed"), 60, "the update")
        part = tmp_path / "event000005.npy"
        np.save(part, np.ones(SHAPE, np.float32))
        part.rename(tmp_path / "incoming" / part.name)
        wait_until(lambda: logged(tmp_path, "acknowledged"), 60, "the record")
        (latent,) = [record for record in centre.records if record.type == packet.LATENT]
        assert latent.model_hash == load_bundle(tmp_path / "new").model_hash
        child.terminate()
        assert child.wait(20) == 0, child.stderr.read()


def test_a_bundle_that_fails_its_self_test_is_never_in_use_and_told(start, tmp_path):
    wrong = encode_vectors(np.zeros((1, 10, 3, 2), np.int8), np.full((1, 1, 8), 127, np.int8))
    rollout = FakeRollout(sign(make_release(tmp_path / "bad", files={VECTORS: wrong}), 7), 7)
    with serve(rollout) as centre:
        start(centre.endpoint)
        wait_until(lambda: [r for r in rollout.reports if r.state == "failed"], 60, "the report")
    report = next(report for report in rollout.reports if report.state == "failed")
    assert "golden vectors come out" in report.reason
    assert in_use(tmp_path) == "old"


def test_a_new_bundle_goes_back_when_the_centre_falls_silent(start, tmp_path, archive):
    rollout = FakeRollout(archive, 7, hears=lambda report: (report.state, report.version) != ("running", 7))
    with serve(rollout) as centre:
        start(centre.endpoint, trial_s=1.0)
        wait_until(lambda: [r for r in rollout.reports if r.state == "failed"], 60, "the report")
    assert "the centre did not answer within 1 s of the start" in [r.reason for r in rollout.reports]
    assert in_use(tmp_path) == "old"


def test_a_signing_key_that_is_none_is_one_line(start, tmp_path):
    (tmp_path / "signing.public").write_text("secret")
    child = start("tcp://127.0.0.1:9")
    assert child.wait(20) == 2
    (line,) = child.stderr.read().splitlines()
    assert line.startswith("error: ")
    assert "expected a public signing key of 64 hex digits" in line
