"""The processes of a run: five devices and a centre, started, watched, always reaped."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import TracebackType

from testbed.errors import TestbedError


@dataclass(frozen=True)
class Runtime:
    """What runs a process's Python: the command before its arguments, its environment (None inherits this one's)."""

    command: tuple[str, ...]
    environment: dict[str, str] | None
    description: str


NATIVE = Runtime((sys.executable,), None, "this machine's own processor")


def resident_mib(pid: int | str = "self") -> float:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def ended_with_this_process() -> list[str]:
    """What has a child asked to end when this process is killed, where the system can: no run leaves a centre at work.

    Linux asks when the thread is gone that started the child, so for the main thread's children only. It asks no
    child that was not ready when that happened: such a one sees another parent, and does not begin.
    """
    found = shutil.which("setpriv")
    if found is None or current_thread() is not main_thread():
        return []
    begin_if_parent_is_there = 'test "$PPID" = "$0" && exec "$@"'
    return [found, "--pdeathsig", "TERM", "sh", "-c", begin_if_parent_is_there, str(os.getpid())]


class Process:
    """A child process whose standard error goes to a file; ``log`` is its own JSON log."""

    def __init__(self, name: str, arguments: list[str], folder: Path, runtime: Runtime = NATIVE) -> None:
        self.name = name
        self.log = folder / f"{name}.jsonl"
        self._errors = folder / f"{name}.stderr"
        with self._errors.open("wb") as errors:
            self._child = subprocess.Popen(
                [*ended_with_this_process(), *runtime.command, *arguments],
                env=runtime.environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )

    @property
    def exit_code(self) -> int | None:
        return self._child.poll()

    @property
    def pid(self) -> int:
        return self._child.pid

    def complaint(self) -> str:
        """The last line the process wrote to standard error."""
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"exit code {self.exit_code}, no message"

    def entries(self, what: str | None = None) -> list[dict]:
        """Whole lines of the process's log, all or those of one kind."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if what is None or row["what"] == what]

    def wait_for(self, what: str, timeout_s: float) -> dict:
        """The first log entry of a kind. Raises ``TestbedError`` when the process ends or time runs out."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if rows := self.entries(what):
                return rows[0]
            if self.exit_code is not None:
                raise TestbedError(f"{self.name}: {self.complaint()}")
            time.sleep(0.02)
        raise TestbedError(f"{self.name}: not {what} within {timeout_s:.0f} s; see {self._errors.parent}")

    def signal(self, number: int) -> None:
        """Send the process a signal; one that has ended gets none."""
        self._child.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> None:
        """Until the process ends by itself. Raises ``TestbedError`` when it does not, or ends badly."""
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TestbedError(f"{self.name}: still running {timeout_s:.0f} s after its last event") from None
        if self.exit_code:
            raise TestbedError(f"{self.name}: {self.complaint()}")

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._child.kill()
        self._child.wait()

    def end(self, timeout_s: float = 15.0) -> None:
        """Ask the process to end, and make it end when it does not."""
        if self.exit_code is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()


class Processes:
    """Children of one run; leaving the context ends every one of them, newest first."""

    def __init__(self) -> None:
        self._all: list[Process] = []

    def start(self, name: str, arguments: list[str], folder: Path, runtime: Runtime = NATIVE) -> Process:
        process = Process(name, arguments, folder, runtime)
        self._all.append(process)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._all):
            process.end()
