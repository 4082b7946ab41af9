"""A device put into a root folder: what lands, what a second run does, what is refused."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installing import install

import epic

pytestmark = pytest.mark.slow

OPT, STATE = "opt/epic", "var/lib/epic"


def files(root: Path) -> dict[str, tuple[bytes, float]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(parts, tmp_path_factory):
    """A root folder with a device; its packages come from the registry, or the user's cache of wheels."""
    root = tmp_path_factory.mktemp("root")
    assert install(parts, "--root", root) == 0
    return root


def test_everything_a_device_needs_is_there_and_secrets_are_its_own(installed):
    there = files(installed)
    for path in ("bundle/encoder.tflite", "firmware_py/runtime/node.py", "node.toml", "keys/device-0.secret"):
        assert f"{OPT}/{path}" in there
    secret = installed / OPT / "keys" / "device-0.secret"
    assert stat.S_IMODE(secret.stat().st_mode) & 0o007 == 0, "nobody else may read it"
    assert "etc/systemd/system/epic-device.service" in there
    packages = {path.name.split("-")[0] for path in (installed / OPT / "venv").rglob("*.dist-info")}
    assert {"ai_edge_litert", "pyzmq", "numpy"} <= packages
    assert not {"tensorflow", "keras", "numba", "typer"} & packages, "the edge extra and no more"


def test_a_second_run_changes_nothing_and_says_so(parts, installed, capsys):
    before = files(installed)
    assert install(parts, "--root", installed) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert files(installed) == before


def test_another_endpoint_changes_the_configuration_alone(parts, installed, capsys):
    before = files(installed)
    assert install(parts, "--root", installed, endpoint="tcp://127.0.0.1:6000") == 0
    after = files(installed)
    changed = {path for path in after if after[path][0] != before.get(path, (b"", 0))[0]}
    assert changed == {f"{OPT}/node.toml"}
    assert "tcp://127.0.0.1:6000" in (installed / OPT / "node.toml").read_text()
    assert install(parts, "--root", installed) == 0


def test_a_dry_run_says_every_step_and_does_none(parts, tmp_path, capsys):
    assert install(parts, "--root", tmp_path / "root", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(step in out for step in ("would copy", "would unpack", "would put in place"))
    assert not list(tmp_path.rglob("*.py"))


def test_a_run_that_was_killed_is_finished_by_the_next(parts, installed, tmp_path):
    """Killed at some points of the way; then run again: the device is as if nothing had happened."""
    wanted = {path for path in files(installed) if not path.startswith(STATE)}
    for delay_s in (1.0, 2.0):
        root = tmp_path / f"root-{delay_s}"
        arguments = ["board", "install", "--board", "generic-linux", "--bundle", str(parts / "bundle")]
        arguments += ["--device", "0", "--endpoint", "tcp://127.0.0.1:5999", "--keys", str(parts / "keys")]
        child = subprocess.Popen(
            [sys.executable, "-m", "epic", *arguments, "--root", str(root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(delay_s)
        os.killpg(child.pid, 9)
        child.wait()
        assert install(parts, "--root", root) == 0
        assert {path for path in files(root) if not path.startswith(STATE)} == wanted
        shutil.rmtree(root)


def test_the_installed_device_runs_and_reaches_a_centre(installed):
    """From its own packages, with none of this environment: it connects to where the centre would be."""
    with socket.create_server(("127.0.0.1", 5999)) as centre:
        centre.settimeout(60.0)
        env = {"PYTHONPATH": str(installed / OPT), "PATH": "/usr/bin:/bin"}
        command = [str(installed / OPT / "venv/bin/python"), "-m", "firmware_py", "run"]
        child = subprocess.Popen([*command, "--config", str(installed / OPT / "node.toml")], env=env)
        try:
            connection, _ = centre.accept()
            with connection:
                connection.settimeout(60.0)
                assert connection.recv(10)[:1] == b"\xff", "ZMTP's greeting"
        finally:
            child.terminate()
            assert child.wait(30) == 0


def test_status_and_uninstall(parts, tmp_path, capsys):
    root = tmp_path / "root"
    assert install(parts, "--root", root) == 0
    capsys.readouterr()
    assert epic.main(["board", "status", "--root", str(root), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["finished"] and status["installed"]["device"] == 0
    (root / STATE / "spool.sqlite").write_bytes(b"records")
    assert epic.main(["board", "uninstall", "--root", str(root)]) == 0
    assert (root / STATE / "spool.sqlite").exists() and not (root / OPT).exists()
    assert epic.main(["board", "status", "--root", str(root)]) == 2
    assert epic.main(["board", "uninstall", "--root", str(root), "--purge"]) == 0
    assert not (root / STATE).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"board": "raspberry-pi-9"}, "raspberry-pi-9"),
        ({"board": "openmv-rt1062"}, "expected --port, the board's prompt"),
        ({"board": "esp32-s3-esp-idf"}, "not installed over ssh"),
        ({"endpoint": "somewhere"}, "somewhere"),
        (
            {"endpoint": "tcp://10.0.0.7:99999"},
            "expected a port of at most 65535, got 'tcp://10.0.0.7:99999'",
        ),
        ({"more": ["--host", "epic@127.0.0.1"]}, "either --host user@address or --root DIR"),
        ({"more": ["--wheels", "/nowhere"]}, "/nowhere: no such folder"),
    ],
)
def test_what_cannot_be_installed_is_one_line_and_leaves_nothing(parts, tmp_path, capsys, change, said):
    arguments = {key: value for key, value in change.items() if key != "more"}
    assert install(parts, "--root", tmp_path / "root", *change.get("more", ()), **arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.toml"))


def test_a_device_without_keys_is_told_to_make_them(parts, tmp_path, capsys):
    arguments = [
        "board",
        "install",
        "--board",
        "generic-linux",
        "--bundle",
        str(parts / "bundle"),
        "--device",
        "3",
    ]
    arguments += ["--endpoint", "tcp://127.0.0.1:5999", "--keys", str(parts / "keys")]
    assert epic.main([*arguments, "--root", str(tmp_path / "root")]) == 2
    assert "epic keys new device-3" in capsys.readouterr().err
