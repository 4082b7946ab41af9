"""The rate of devices, set at the centre while both are at work: as processes, killed and started again."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ports import free_port
from releases import make_release
from tiny import ENCODER, SHAPE
from waiting import wait_until

import epic
from central.fleet.device_views import devices
from central.fleet.rates import ALL, keep_rate, rates
from central.storage.database import connect
from central.storage.map_store import Store
from firmware_py.inference.bundle import load_bundle

CENTRE = Path(__file__).parents[1] / "support" / "centre_process.py"
# 8 values: 8 or 4 bytes as any latent, and 3 or 2 of its first three.
PREFIXES = [[3, 8], [3, 4]]
TIMEOUT_S = 60


class Field:
    """A centre and a device of 4 bits a value, each a process, in ``folder``."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.children = {}
        make_release(folder / "bundle", "ordered", ENCODER, prefixes=PREFIXES)
        self.config = folder / "central.toml"
        self.config.write_text(
            f'[central]\nlisten = "tcp://127.0.0.1:{self.port}"\ninsecure = true\ndata_dir = "data"\n'
            'deadline_s = 0.1\npictures = false\nlog = "central.jsonl"\n'
            '[[model]]\nbundle = "bundle"\ndecoder = "-"\n'
        )
        (folder / "incoming").mkdir()
        (folder / "node.toml").write_text(
            '[node]\ndevice = 1\nbundle = "bundle"\nbits = 4\n'
            f'[link]\nendpoint = "tcp://127.0.0.1:{self.port}"\ninsecure = true\nresend_s = 0.2\n'
            '[source]\nkind = "folder"\npath = "incoming"\npoll_s = 0.05\n'
            '[health]\ninterval_s = 1\n[run]\nlog = "node.jsonl"\n'
        )

    def start(self, name):
        command = {
            "centre": [str(CENTRE), str(self.config)],
            "device": ["-m", "firmware_py", "run", "--config", str(self.folder / "node.toml")],
        }[name]
        self.children[name] = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)

    def end(self, name, number=signal.SIGKILL):
        self.children[name].send_signal(number)
        self.children[name].wait()

    def rate(self, *arguments):
        return epic.main(["central", "rate", "--config", str(self.config), *map(str, arguments)])

    def record(self, event):
        part = self.folder / f"event{event:06d}.npy"
        np.save(part, np.full(SHAPE, float(event), np.float32))
        part.rename(self.folder / "incoming" / part.name)

    def sent(self, event):
        """Bytes of the latent of an event that the centre has kept; None before."""
        with closing(connect(self.folder / "data", create=True)) as database:
            row = database.execute("SELECT length(payload) FROM record WHERE event = ?", (event,)).fetchone()
        return row and row[0]

    def records(self, event):
        self.record(event)
        return wait_until(lambda: self.sent(event), TIMEOUT_S, f"the record of event {event}")

    def in_force(self, latent_bytes):
        def told():
            return [v.latent_bytes for v in devices(self.folder / "data") if v.device == 1] == [latent_bytes]

        wait_until(told, TIMEOUT_S, f"a device that makes latents of {latent_bytes} bytes")

    def told(self, what):
        lines = map(json.loads, (self.folder / "node.jsonl").read_text().splitlines())
        return [line for line in lines if line["message"] == what]


@pytest.fixture
def field(tmp_path):
    one = Field(tmp_path)
    yield one
    for child in one.children.values():
        child.kill()
        child.wait()


def test_a_rate_is_set_at_run_time_and_outlives_device_and_centre(field, capsys):
    field.start("centre")
    field.start("device")
    assert field.records(1) == 4, "[node] bits, until the centre says otherwise"
    field.in_force(4)
    assert field.rate(3) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "all devices: set to 3 bytes a latent",
        "survey 1, device 1: set to 3 bytes a latent; makes 4 bytes a latent",
    ]
    field.in_force(3)
    assert field.records(2) == 3
    store = Store(field.folder / "data")
    provenance = wait_until(
        lambda: {m.event: m for m in store.newest()}.get(2), TIMEOUT_S, "its map"
    ).provenance
    store.close()
    assert provenance["latent_bytes"] == {"1": 3}

    field.end("device")
    field.end("centre")
    field.record(3)
    field.start("device")
    wait_until(lambda: len(field.told("recorded")) == 3, TIMEOUT_S, "a recording without a centre")
    field.start("centre")
    wait_until(lambda: field.sent(3), TIMEOUT_S, "what was recorded meanwhile")
    assert field.sent(3) == 3, "kept on the device"

    assert field.rate("--device", 1, 2) == 0
    field.in_force(2)
    assert field.rate("--device", 1, "--clear") == 0
    field.in_force(3)
    assert field.rate("--clear") == 0
    field.in_force(4)
    assert field.records(4) == 4
    assert [line["latent_bytes"] for line in field.told("rate")] == [4, 3, 3, 2, 3, 4], "each change once"


def complaint(capsys):
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


def test_a_rate_that_a_model_was_not_trained_for_is_refused(field, capsys):
    """Before any device was heard; what was set before stays."""
    plain = make_release(field.folder / "plain", "plain")
    field.config.write_text(field.config.read_text() + '[[model]]\nbundle = "plain"\ndecoder = "-"\n')
    model_hash = load_bundle(plain).model_hash.hex()
    assert field.rate(4) == 0
    capsys.readouterr()
    assert field.rate(3) == 2
    assert complaint(capsys) == (
        f"error: rate: the centre has plain {model_hash}: expected a latent of 8 or 4 bytes, got 3; give one of "
        "these, or roll out a model that was trained with --nested"
    )
    assert field.rate(7, "--device", 1, "--survey", 1) == 2
    assert "expected a latent of 8, 4, 3 or 2 bytes, got 7; give one of these" in complaint(capsys)
    assert rates(field.folder / "data") == {ALL: 4}


def heard_of(field, device, model_hash, survey=1):
    with closing(connect(field.folder / "data", create=True)) as database:
        database.execute(
            "INSERT INTO device VALUES (?,?,1,0,0,0,'',?)",
            (survey, device, json.dumps({"model_hash": model_hash, "latent_bytes": 8})),
        )


def test_the_model_that_a_device_runs_is_what_counts(field, capsys):
    plain = load_bundle(make_release(field.folder / "plain", "plain"))
    field.config.write_text(field.config.read_text() + '[[model]]\nbundle = "plain"\ndecoder = "-"\n')
    heard_of(field, 0, load_bundle(field.folder / "bundle").model_hash.hex())
    heard_of(field, 1, plain.model_hash.hex())
    assert field.rate(3, "--device", 0) == 0
    assert capsys.readouterr().out.splitlines() == [
        "survey 1, device 0: set to 3 bytes a latent; makes 8 bytes a latent"
    ]
    for arguments in ((3, "--device", 1), (3,)):
        assert field.rate(*arguments) == 2
        assert "rate: device 1 of survey 1 runs plain" in complaint(capsys)
    assert rates(field.folder / "data") == {(1, 0): 3}
    assert field.rate("--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "all": None,
        "devices": [
            {"survey": 1, "device": 0, "set": 3, "in_force": 8},
            {"survey": 1, "device": 1, "set": None, "in_force": 8},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, "--clear"), "rate: give either a number of bytes or --clear"),
        ((3, "--survey", 1), "rate: --survey says whose --device is meant; give that as well"),
        ((3, "--device", 7), "rate: device 7 has not reported yet; give its --survey as well"),
        ((3, "--device", 5), "rate: device 5 is of surveys 1, 2; give its --survey as well"),
    ],
)
def test_who_is_meant_is_not_guessed(field, capsys, arguments, said):
    for survey in (1, 2):
        heard_of(field, 5, "00" * 8, survey)
    assert field.rate(*arguments) == 2
    assert complaint(capsys) == f"error: {said}"
    assert rates(field.folder / "data") == {}


def test_what_is_set_twice_is_set_once(data_dir):
    for latent_bytes in (64, 32):
        keep_rate(data_dir, (1, 3), latent_bytes)
        keep_rate(data_dir, (1, 3), latent_bytes)
    keep_rate(data_dir, (1, 4), 16)
    keep_rate(data_dir, (1, 4), None)
    keep_rate(data_dir, (1, 4), None)
    assert rates(data_dir) == {(1, 3): 32}
