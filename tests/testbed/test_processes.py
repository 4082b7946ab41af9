"""What a run starts ends with it, however it ends."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from testbed.processes import ended_with_this_process

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
from pathlib import Path
from testbed.processes import Processes
folder = Path(sys.argv[1])
with Processes() as processes:
    for name in ("one", "two"):
        child = processes.start(name, ["-c", "import time; time.sleep(600)"], folder)
        (folder / f"{name}.pid").write_text(str(child.pid))
    (folder / "started").touch()
    time.sleep(600)
"""


needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs Linux' setpriv")


def is_there(pid: int) -> bool:
    """Whether a process runs; one that is only waiting to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@needs_setpriv
def test_the_children_of_a_run_that_is_killed_end_too(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    try:
        wait_until((tmp_path / "started").exists, 60, "two children")
        children = [int((tmp_path / f"{name}.pid").read_text()) for name in ("one", "two")]
        assert all(map(is_there, children))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_until(lambda: not any(map(is_there, children)), 20, "the end of both")
    finally:
        run.kill()
        run.wait()


@needs_setpriv
@pytest.mark.parametrize("orphaned", [False, True])
def test_a_child_whose_run_was_killed_before_it_was_ready_does_not_begin(tmp_path, orphaned):
    begun = tmp_path / "begun"
    command = [*ended_with_this_process(), "touch", str(begun)]
    # Another process in between is another parent, as the one is to which an orphan goes.
    between = (
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"] if orphaned else []
    )
    subprocess.run([*between, *command], check=False)
    assert begun.exists() is not orphaned
