"""Start, monitor and reap the processes of a run: five devices and a centre."""

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
    """Command prefix and environment of a process's Python; environment None inherits this one's."""

    command: tuple[str, ...]
    environment: dict[str, str] | None
    description: str


NATIVE = Runtime((sys.executable,), None, "this machine's own processor")


def resident_mib(pid: int | str = "self") -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def ended_with_this_process() -> list[str]:
    """Return a hook that has the system terminate a child when this process is killed (Linux only).

    Linux signals the child when the thread that started it ends, so only the main thread may start such children. If
    the parent died before the hook ran, no signal comes. The child then sees another parent and exits.
    """
    found = shutil.which("setpriv")
    if found is None or current_thread() is not main_thread():
        return []
    begin_if_parent_is_there = 'test "$PPID" = "$0" && exec "$@"'
    return [found, "--pdeathsig", "TERM", "sh", "-c", begin_if_parent_is_there, str(os.getpid())]


class Process:
    """A child process whose standard error goes to a file; ``log`` is its JSON log."""

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
        """Return the last line of the process's standard error."""
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"exit code {self.exit_code}, no message"

    def entries(self, what: str | None = None) -> list[dict]:
        """Return the complete lines of the process's log, all or of one kind."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if what is None or row["message"] == what]

    def wait_for(self, what: str, timeout_s: float) -> dict:
        """Return the first log entry of a kind. Raises ``TestbedError`` if the process ends or time runs out."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if rows := self.entries(what):
                return rows[0]
            if self.exit_code is not None:
                raise TestbedError(f"{self.name}: {self.complaint()}")
            time.sleep(0.02)
        raise TestbedError(f"{self.name}: not {what} within {timeout_s:.0f} s; see {self._errors.parent}")

    def signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        self._child.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> None:
        """Wait for the process to end. Raises ``TestbedError`` on time-out or a bad exit status."""
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TestbedError(f"{self.name}: still running {timeout_s:.0f} s after its last event") from None
        if self.exit_code:
            raise TestbedError(f"{self.name}: {self.complaint()}")

    def kill(self) -> None:
        """Send SIGKILL and wait for the process."""
        self._child.kill()
        self._child.wait()

    def end(self, timeout_s: float = 15.0) -> None:
        """Ask the process to end; kill it if it does not."""
        if self.exit_code is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()


class Processes:
    """Child processes of one run; leaving the context ends all of them, newest first."""

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
