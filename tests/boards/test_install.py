"""A device put into a root folder and over a real ssh: what lands, what a second run does, what is refused."""

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
from tiny import ENCODER, bundle_fields
from waiting import wait_until

import epic
from central.keys import new_keys
from firmware_py.bundle import create_bundle

OPT, STATE = "opt/epic", "var/lib/epic"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A bundle and keys of device 0."""
    folder = tmp_path_factory.mktemp("parts")
    create_bundle(folder / "bundle", ENCODER, bundle_fields())
    new_keys(folder / "keys", "device-0")
    return folder


def install(parts, *more, board="generic-linux", endpoint="tcp://127.0.0.1:5999"):
    return epic.main(
        [
            *("board", "install", "--board", board, "--bundle", str(parts / "bundle"), "--device", "0"),
            *("--endpoint", endpoint, "--keys", str(parts / "keys"), *map(str, more)),
        ]
    )


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
    for path in ("bundle/encoder.tflite", "firmware_py/node.py", "node.toml", "keys/device-0.secret"):
        assert f"{OPT}/{path}" in there
    secret = installed / OPT / "keys" / "device-0.secret"
    assert stat.S_IMODE(secret.stat().st_mode) & 0o007 == 0, "nobody else may read it"
    assert "etc/systemd/system/epic-device.service" in there
    packages = {path.name.split("-")[0] for path in (installed / OPT / "venv").rglob("*.dist-info")}
    assert {"ai_edge_litert", "pyzmq", "numpy"} <= packages
    assert not {"tensorflow", "keras", "torch", "typer"} & packages, "the edge extra and no more"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_understands_and_watches(installed, tmp_path):
    unit = (installed / "etc/systemd/system/epic-device.service").read_text()
    for setting in (
        "Type=notify",
        "WatchdogSec=",
        "Restart=",
        "MemoryMax=",
        "User=epic",
        "ProtectSystem=strict",
    ):
        assert setting in unit
    lines = [line if not line.startswith("Exec") else "ExecStart=/bin/true" for line in unit.splitlines()]
    (tmp_path / "epic-device.service").write_text("\n".join(lines))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "epic-device.service")],
        capture_output=True,
        text=True,
    )
    assert [line for line in found.stderr.splitlines() if "epic-device.service" in line] == []


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
    for delay_s in (1.0, 1.5, 2.0):
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
        ({"board": "openmv-rt1062"}, "not installed over ssh"),
        ({"endpoint": "somewhere"}, "somewhere"),
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


SSHD = "/usr/sbin/sshd"


@pytest.fixture
def ssh_config(tmp_path):
    """A real sshd on loopback, and the configuration that reaches it as ``board``."""
    if os.geteuid() or not Path(SSHD).exists() or not shutil.which("ssh"):
        pytest.skip("needs root, sshd and ssh")
    if Path("/opt/epic").exists() or Path("/var/lib/epic").exists() or Path("/run/systemd/system").exists():
        pytest.skip("would install onto this machine, which has a device or runs systemd")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    public = (tmp_path / "host.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    daemon = subprocess.Popen(
        [
            *(SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(port), "-h", str(tmp_path / "host")),
            *("-o", f"AuthorizedKeysFile={tmp_path / 'authorized'}", "-o", "ListenAddress=127.0.0.1"),
            *("-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no", "-o", "PermitRootLogin=yes"),
        ],
        stderr=(tmp_path / "sshd.log").open("wb"),
    )
    config = tmp_path / "config"
    config.write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {tmp_path / 'user'}\n"
        f" UserKnownHostsFile {tmp_path / 'known'}\n"
    )

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, what="sshd")
    yield config
    daemon.terminate()
    daemon.wait()


def test_over_ssh_install_status_and_uninstall(parts, ssh_config, capsys):
    reach = ["--host", "board", "--ssh-config", str(ssh_config)]
    try:
        assert install(parts, *reach) == 0
        assert "no systemd there" in capsys.readouterr().out
        assert install(parts, *reach) == 0
        assert "nothing to change" in capsys.readouterr().out
        assert epic.main(["board", "status", *reach]) == 0
        assert "device 0 of survey 1" in capsys.readouterr().out
        assert epic.main(["board", "logs", *reach]) == 2
    finally:
        assert epic.main(["board", "uninstall", "--purge", *reach]) == 0
    assert not Path("/opt/epic").exists() and not Path("/var/lib/epic").exists()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "known").write_text(""), "board"),
        (lambda folder: (folder / "authorized").write_text(""), "board"),
        (
            lambda folder: (folder / "config").write_text("Host board\n HostName 127.0.0.1\n Port 9\n"),
            "board",
        ),
    ],
)
def test_a_board_that_cannot_be_reached_is_one_line(parts, ssh_config, capsys, break_it, said):
    break_it(ssh_config.parent)
    assert install(parts, "--host", "board", "--ssh-config", ssh_config) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
