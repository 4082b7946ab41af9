"""The device as a process of its own: how it starts, stops, is killed, and says what is wrong."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from fake_centre import FakeCentre
from tiny import SHAPE
from waiting import wait_until

from firmware_py.protocol import packet

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path, bundle, gathers):
    """Starts a device on ``gathers.npy``; ``node``, ``source`` and ``run`` are further lines of node.toml."""
    np.save(tmp_path / "gathers.npy", gathers)
    children = []

    def _start(endpoint="tcp://127.0.0.1:9", node="", source="", options=(), command="run"):
        (tmp_path / "node.toml").write_text(
            f'[node]\ndevice = 1\nbundle = "bundle"\n{node}\n'
            f'[link]\nendpoint = "{endpoint}"\ninsecure = true\nresend_s = 0.2\n'
            f'[source]\nkind = "files"\npaths = ["gathers.npy"]\n{source}\n'
            '[run]\nexit_when_drained = true\nlog = "node.jsonl"\n'
        )
        child = subprocess.Popen(
            [sys.executable, "-m", "firmware_py", command, "--config", str(tmp_path / "node.toml"), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield _start
    for child in children:
        child.kill()
        child.communicate()


def finish(child):
    out, errors = child.communicate(timeout=20)
    return child.returncode, out, errors


def test_a_drained_replay_ends_well_and_reports(start):
    with FakeCentre() as centre:
        code, out, errors = finish(start(centre.endpoint, options=["--json"]))
    assert (code, errors) == (0, ""), "the runtime's own notes are kept off the error stream"
    report = json.loads(out)
    assert (report["recorded"], report["acknowledged"], report["waiting"]) == (4, 4, 0)
    assert report["records_sent"] == len(centre.records) + len(centre.said)


def test_a_device_loads_nothing_that_it_does_not_need(start, tmp_path):
    with FakeCentre() as centre:
        # `check` writes node.toml and records nothing, so that the run after it does all of a run.
        assert finish(start(centre.endpoint, command="check"))[0] == 0
        code = (
            "import sys\nfrom firmware_py.__main__ import main\n"
            f"assert main(['run', '--config', {str(tmp_path / 'node.toml')!r}]) == 0\n"
            "print('modules', *sorted({name.split('.')[0] for name in sys.modules}))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert len(centre.records) == 4
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split()[1:])
    assert {"numpy", "zmq", "ai_edge_litert", "firmware_py"} <= loaded
    rooms = {"boards", "central", "convert", "models", "physics", "testbed", "epic"}
    heavy = {"tensorflow", "keras", "numba", "typer", "rich", "pydantic", "matplotlib", "scipy", "asyncio"}
    assert not loaded & (rooms | heavy)


def test_a_killed_device_goes_on_where_it_was(start):
    """SIGKILL with records unacknowledged: they come again under their old numbers, and no event is missed."""
    with FakeCentre(lambda record: None) as centre:
        child = start(centre.endpoint, source="interval_s = 0.1")
        wait_until(lambda: len({r.event for r in centre.records}) == 2, what="two events")
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = {record.event: record for record in centre.records}
        centre.records.clear()
        centre.answer = packet.acknowledge
        assert finish(start(centre.endpoint))[0] == 0
    after = {record.event: record for record in centre.records}
    assert set(after) == {1, 2, 3, 4}
    assert {event: after[event] for event in before} == before
    assert after[4].boot == before[1].boot + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_device_stops_on_request_and_keeps_what_it_has(start, number):
    with FakeCentre(lambda record: None) as centre:
        child = start(centre.endpoint, options=["--json"])
        wait_until(lambda: len(centre.records) >= 4, what="records in flight")
        child.send_signal(number)
        code, out, errors = finish(child)
    assert (code, errors) == (0, "")
    assert json.loads(out)["waiting"] == 4


def test_a_refusal_ends_the_run_with_its_reason(start):
    with FakeCentre(lambda record: packet.refuse(record, "encoder unknown;\ninstall the bundle")) as centre:
        code, _, errors = finish(start(centre.endpoint))
    assert code == 3
    assert errors == (
        "error: the centre refused 4 of this device's records: encoder unknown; install the bundle\n"
    )


def one_line(child):
    """The message of a device that fails as it should: exit code 2, one line on standard error."""
    code, _, errors = finish(child)
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def damage(path, how, gathers):
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "nan":
        gathers[1, 0, 0, 4] = np.nan
        np.save(path, gathers)
    else:
        np.save(path, np.zeros((2, *SHAPE[:2], SHAPE[2] - 1), np.float32))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "gathers.npy: not found; expected a .npy file of gathers"),
        ("truncated", "gathers.npy: not a whole .npy file"),
        ("nan", "event 2: gather: expected finite samples, got 1 NaN or infinite"),
        ("shape", "expected a gather (2, 100, 6) or this device's part (2, 100, 3), got (2, 100, 5)"),
    ],
)
def test_recordings_at_fault(start, tmp_path, gathers, how, message):
    damage(tmp_path / "gathers.npy", how, gathers)
    assert message in one_line(start())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("receivers = [3, 6]", "[node] receivers: expected at most 3 of 0 to 5"),
        ("recievers = [3, 5]", "[node] unknown key 'recievers'; did you mean 'receivers'? known are device"),
        ('state_dir = "gathers.npy"', "spool.sqlite: cannot keep a spool there"),
    ],
)
def test_configurations_at_fault(start, node, message):
    assert message in one_line(start(node=node))


def test_a_damaged_bundle(start, bundle):
    bundle.encoder_path.write_bytes(bundle.encoder_path.read_bytes()[:-1])
    assert "encoder.tflite: SHA-256 is" in one_line(start())


def test_check_reports_and_leaves_the_spool_alone(start, tmp_path):
    code, out, errors = finish(start(command="check", options=["--json"]))
    assert (code, errors) == (0, "")
    report = json.loads(out)
    assert (report["bundle"], report["receivers"], report["latent_bytes"]) == ("tiny", [3, 4, 5], 8)
    assert not (tmp_path / "state").exists()
    (tmp_path / "gathers.npy").unlink()
    assert "not found" in one_line(start(command="check"))
