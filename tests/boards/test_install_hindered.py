"""What stands in the way of an installation over ssh: another board, a full disk, a connection that goes."""

import contextlib
import os
import random
import subprocess
import sys
import time

import pytest
from installing import install, install_arguments
from waiting import wait_until

import boards.install.linux.install
from boards.install.linux.layout import PREFIX, Layout

pytestmark = pytest.mark.slow


def one_line(text):
    assert text.count("\n") == 1 and text.startswith("error: "), text
    return text


def in_use(board):
    """Whether a device could be started there: packages and configuration are in their places."""
    return os.path.lexists(board.path(f"{PREFIX}/venv")) or board.path(f"{PREFIX}/node.toml").exists()


@pytest.mark.parametrize(
    ("uname", "name", "said"),
    [
        ("armv6l", "raspberry-pi-zero-2w", "needs aarch64, got armv6l"),
        ("x86_64", "raspberry-pi-4", "needs aarch64, got x86_64"),
        ("aarch64", "raspberry-pi-4", None),
    ],
)
def test_a_board_of_another_processor_is_refused(parts, machine, capsys, uname, name, said):
    board = machine(uname=uname)
    code = install(parts, *board.reach, "--dry-run", board=name)
    errors = capsys.readouterr().err
    if said is None:
        # The tiny bundle's packages are all there is to say of a board of the right kind.
        assert code == 0, errors
    else:
        assert code == 2 and said in one_line(errors)
    assert not board.path(PREFIX).exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(parts, machine, capsys):
    board = machine(opt_size="60m")
    assert install(parts, *board.reach) == 2
    error = one_line(capsys.readouterr().err)
    assert "/opt/epic: needs " in error and "there are 60 MiB; make room, or use a larger card" in error
    assert not board.path(PREFIX).exists()


@pytest.mark.parametrize("opt_size", ["20m", "90m"])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing_in_use(parts, machine, capsys, monkeypatch, opt_size):
    """While files are copied, or packages unpacked; with more room the same command goes on."""
    board = machine(opt_size=opt_size)
    with monkeypatch.context() as patch:
        # Another program takes the room that there was.
        patch.setattr(boards.install.linux.install, "SPARE_BYTES", -(1 << 40))
        assert install(parts, *board.reach) == 2
    assert "No space left on device" in one_line(capsys.readouterr().err)
    assert not in_use(board)
    assert board.run("mount", "-o", "remount,size=300m", "/opt").returncode == 0
    assert install(parts, *board.reach) == 0
    assert in_use(board)
    assert install(parts, *board.reach) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_connection_lost_at_any_point_is_one_line_and_the_same_command_goes_on(parts, machine, capsys):
    board = machine()
    command = [sys.executable, "-m", "epic", *install_arguments(parts, *board.reach)]
    seed = random.randrange(1 << 32)
    lost = 0
    draw = random.Random(seed)
    # At once first: later the installation may be over.
    for delay_s in (0.0, draw.uniform(0.0, 3.0)):
        code, error = cut_off(board, command, delay_s)
        said = f"seed {seed}, after {delay_s:.2f} s: {error}"
        if code:
            lost += 1
            assert "connection was lost" in one_line(error) and "run the same command again" in error, said
        if in_use(board):
            assert (board.path(f"{PREFIX}/venv") / "complete").exists(), said
    assert lost
    assert install(parts, *board.reach) == 0
    capsys.readouterr()
    assert install(parts, *board.reach) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert board.run(*Layout().run_argv("check")).returncode == 0, "what is there runs"


def cut_off(board, command, delay_s):
    """Its exit code and message, with every ssh session killed that there is so long after the first began, or later:
    one of them alone may be at its end already, and then nothing is lost."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: board.sessions() or child.poll() is not None, 60.0, "the connection")
    time.sleep(delay_s)

    def is_over():
        for pid in board.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        return child.poll() is not None

    wait_until(is_over, 120.0, "its end")
    return child.returncode, child.communicate()[1]


def test_two_installations_at_once_wait_for_each_other(parts, tmp_path):
    command = [sys.executable, "-m", "epic", *install_arguments(parts, "--root", tmp_path / "root")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [child.communicate(timeout=200)[1].decode() for child in both]
    codes = [child.returncode for child in both]
    assert 0 in codes, errors
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "another installation" in one_line(error), error
    layout = Layout(str(tmp_path / "root"))
    assert subprocess.run(layout.run_argv("check"), capture_output=True).returncode == 0, "what is there runs"
    assert install(parts, "--root", tmp_path / "root") == 0
