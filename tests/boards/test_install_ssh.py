"""A device put onto a Linux board over a real ssh: with and without systemd, and what stands in the way of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from board_machine import BoardMachine
from installing import install
from tiny import SHAPE
from waiting import wait_until

import epic
from boards.install.linux.layout import PREFIX, STATE, SYSUSERS, TMPFILES, UNIT, WANTED
from firmware_py.protocol import packet

pytestmark = pytest.mark.slow

ELSEWHERE = "tcp://127.0.0.1:6000"


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def user_there(board):
    return board.run("id", "epic").returncode == 0


def test_without_systemd_install_status_and_uninstall(parts, machine, capsys):
    board = machine()
    assert install(parts, *board.reach) == 0
    assert "no systemd there" in capsys.readouterr().out
    assert install(parts, *board.reach) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert epic.main(["board", "status", *board.reach]) == 0
    assert "device 0 of survey 1" in capsys.readouterr().out
    assert epic.main(["board", "logs", *board.reach]) == 2
    assert epic.main(["board", "uninstall", "--purge", *board.reach]) == 0
    assert not board.path(PREFIX).exists() and not board.path(STATE).exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("known", "", "its host key is not known here"),
        ("authorized", "", "does not let this user in by key"),
        ("config", "Host board\n HostName 127.0.0.1\n Port 9\n", "nothing listens for ssh there"),
    ],
)
def test_a_board_that_cannot_be_reached_is_one_line(parts, machine, capsys, file, content, said):
    board = machine()
    (board.folder / file).write_text(content)
    assert install(parts, *board.reach) == 2
    assert said in one_line(capsys)


@pytest.fixture(scope="module")
def service(parts, tmp_path_factory):
    """A board with systemd, on which the device runs as a service."""
    board = BoardMachine(tmp_path_factory.mktemp("service"), systemd=True)
    assert install(parts, *board.reach) == 0
    yield board
    board.close()


@pytest.fixture
def running(parts, service):
    """The same, as after an installation, whatever a test before has done to it."""
    assert install(parts, *service.reach) == 0
    service.calls()
    return service


def main_pid(board):
    return board.run("systemctl", "show", "epic-device").stdout.split("MainPID=")[1].split()[0]


def test_with_systemd_the_device_runs_as_a_user_of_its_own(running):
    assert running.path(UNIT).is_file()
    assert running.path(WANTED).readlink() == Path("../epic-device.service"), "it starts with the board"
    owner = running.run("stat", "-c", "%U:%G %a", f"{PREFIX}/keys/device-0.secret").stdout.strip()
    assert owner == "epic:epic 600"
    assert running.run("ps", "-o", "user=", "-p", main_pid(running)).stdout.strip() == "epic"


def test_a_service_is_restarted_only_when_something_changed(parts, running, capsys):
    before = main_pid(running)
    running.calls()
    capsys.readouterr()
    assert install(parts, *running.reach) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert running.calls() == ["is-active epic-device"]
    assert main_pid(running) == before, "a device at work is left alone"

    running.calls()
    assert install(parts, *running.reach, "--no-start", endpoint=ELSEWHERE) == 0
    assert "Not started, as asked" in capsys.readouterr().out
    assert running.calls() == ["daemon-reload"]
    assert install(parts, *running.reach) == 0
    assert "epic-device runs" in capsys.readouterr().out
    assert running.calls() == ["daemon-reload", "restart epic-device"]
    assert main_pid(running) != before

    running.run("systemctl", "stop", "epic-device")
    running.calls()
    assert install(parts, *running.reach) == 0
    assert running.calls() == ["is-active epic-device", "restart epic-device"], "one that stands is started"


def test_a_service_sees_recordings_where_they_are_also_in_a_home(parts, running):
    """The unit hides /home, else; the stand-in for systemd hides what the unit says."""
    incoming = running.path("/home/recorder/shots")
    incoming.mkdir(parents=True, exist_ok=True)
    os.chown(incoming, *(int(running.run("id", option, "epic").stdout) for option in ("-u", "-g")))
    assert install(parts, *running.reach, "--incoming", "/home/recorder/shots") == 0
    np.save(incoming / ".shot-000001.npy", np.ones(SHAPE, np.float32))
    (incoming / ".shot-000001.npy").rename(incoming / "shot-000001.npy")
    wait_until((incoming / "sent" / "shot-000001.npy").exists, 60.0, "the recording")


def log(board, **entry):
    """Add a line to the service's log, as the device writes it."""
    with (board.folder / "journal").open("a") as journal:
        print(json.dumps({"timestamp_us": 0, **entry}), file=journal)


def test_a_start_is_watched_until_its_answer_or_the_line_that_says_why_not(parts, running, capsys):
    assert install(parts, *running.reach, "--wait", "3", endpoint=ELSEWHERE) == 4
    assert "no answer of the centre within 3 s" in capsys.readouterr().out, "nothing listens there"
    assert epic.main(["board", "status", *running.reach]) == 4
    assert "no answer of the centre" in capsys.readouterr().out
    log(running, message="link_down", reason="the centre does not know this key")
    assert epic.main(["board", "status", *running.reach]) == 4
    assert "no answer of the centre: link down: the centre does not know this key" in capsys.readouterr().out
    # Over TCP and serial a record counts as sent whoever listens. An earlier start says nothing of this one.
    for kind in (packet.UPDATE, packet.HELLO):
        log(running, message="control_sent", type=kind, bytes=9)
        assert epic.main(["board", "status", *running.reach]) == 4
    log(running, message="control_answered", type=packet.HELLO)
    assert epic.main(["board", "status", *running.reach]) == 0
    log(running, message="started", boot=7)
    assert epic.main(["board", "status", *running.reach]) == 4

    with (running.folder / "journal").open("a") as journal:
        print("error: the spool is full\nepic-device.service: Failed with result 'exit-code'.", file=journal)
    running.run("systemctl", "stop", "epic-device")
    capsys.readouterr()
    assert epic.main(["board", "status", *running.reach, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["start"]["said"] == "error: the spool is full" and found["exit_code"] == 3


def test_status_and_log_of_a_service(running, capfd):
    log(running, message="control_answered", type=packet.HELLO)
    capfd.readouterr()
    assert epic.main(["board", "status", *running.reach]) == 0
    assert "service    active (running)" in capfd.readouterr().out
    assert epic.main(["board", "status", *running.reach, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["service"]["MainPID"] == main_pid(running)
    assert epic.main(["board", "logs", *running.reach]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["message"]


def test_a_systemctl_that_fails_is_one_line_and_the_next_run_goes_on(parts, running, capsys):
    capsys.readouterr()
    denied = "Failed to reload daemon: Access denied"
    for verb, text, said in (
        ("daemon-reload", denied, f"systemctl: {denied}"),
        ("restart", "Job for epic-device.service failed.", "does not start; its log ends: error: no such"),
    ):
        (running.folder / f"fail-{verb}").write_text(text)
        (running.folder / "journal").write_text("error: no such file\n")
        assert install(parts, *running.reach, endpoint=ELSEWHERE) == 2
        (running.folder / f"fail-{verb}").unlink()
        assert said in one_line(capsys)
        assert epic.main(["board", "status", *running.reach]) == 1
        assert "unfinished" in capsys.readouterr().out
    running.calls()
    assert install(parts, *running.reach, endpoint=ELSEWHERE) == 0
    assert running.calls() == ["daemon-reload", "restart epic-device"]

    (running.folder / "fail-disable").write_text("Failed to disable unit: Access denied")
    capsys.readouterr()
    assert epic.main(["board", "uninstall", *running.reach]) == 2
    (running.folder / "fail-disable").unlink()
    assert "systemctl: Failed to disable unit: Access denied" in one_line(capsys)
    assert running.path(UNIT).exists(), "nothing is removed from under a service that runs"


def test_a_service_is_stopped_and_disabled_before_it_goes(parts, running):
    assert epic.main(["board", "uninstall", *running.reach]) == 0
    assert running.calls() == ["disable --now epic-device", "daemon-reload"]
    assert running.run("systemctl", "is-active", "epic-device").returncode
    for path in (PREFIX, UNIT, WANTED, SYSUSERS, TMPFILES):
        assert not running.path(path).exists()
    assert running.path(STATE).is_dir() and user_there(running), "the spool stays, and belongs to somebody"
    assert epic.main(["board", "uninstall", "--purge", *running.reach]) == 0
    assert not running.path(STATE).exists() and not user_there(running)
    # As after an installation that was cut off before there was a user.
    running.path(STATE).mkdir()
    assert epic.main(["board", "uninstall", "--purge", *running.reach]) == 0
    assert not running.path(STATE).exists()
