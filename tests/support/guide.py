"""A guide as something to be carried out: its files, its commands, and what it says they print.

What a guide holds, and what becomes of it:

- a block ```toml or ```python whose first line is ``# NAME``, or a block ```json NAME: a file of that name;
- a block ```sh: commands, one a line (a backslash goes on);
- a block ```console: commands after ``$ ``, each with lines that it prints. They are looked for in what it really
  prints: in their order, ``...`` standing for anything, every number for any number, and line breaks for blanks.

A command that serves until Ctrl-C (``SERVES``) runs until the guide is over, as in a terminal of its own; what it
prints at its start is waited for.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

SERVES = ("epic central run", "epic central page", "epic central gateway")
FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
TIMEOUT_S = 240.0


@dataclass
class Command:
    """A line to type, and the lines that it is said to print."""

    text: str
    prints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class File:
    """A file that the reader is told to write."""

    name: str
    text: str


def read_steps(text: str) -> list[Command | File]:
    """The files and commands of a guide's Markdown, in its order."""
    steps: list[Command | File] = []
    for kind, named, body in FENCE.findall(text):
        lines = body.splitlines()
        if kind in ("toml", "python") and (name := re.fullmatch(r"# (\S+\.(?:toml|py))", lines[0])):
            steps.append(File(name[1], body))
        elif kind == "json" and named:
            steps.append(File(named, body))
        elif kind == "sh":
            joined = body.replace("\\\n", " ")
            steps += [Command(line) for line in joined.splitlines() if line.split("#")[0].strip()]
        elif kind == "console":
            steps += _session(lines)
    return steps


def _session(lines: list[str]) -> list[Command]:
    commands: list[Command] = []
    goes_on = False
    for line in lines:
        if goes_on:
            commands[-1].text += " " + line.rstrip("\\").strip()
        elif line.startswith("$ "):
            commands.append(Command(line[2:].rstrip("\\").strip()))
        elif commands and line.strip():
            commands[-1].prints.append(line)
            continue
        goes_on = line.endswith("\\")
    return commands


def looks_like(printed: str, said: list[str]) -> bool:
    """Whether ``printed`` has the lines ``said`` of a guide, in their order, in the sense of this module."""
    pattern = ".*".join(_pattern(line) for line in said)
    return re.search(pattern, " ".join(printed.split()), re.DOTALL) is not None


def _pattern(line: str) -> str:
    words = " ".join(line.split())
    parts = [re.escape(part) for part in NUMBER.sub("\0", words).split("...")]
    return ".*".join(parts).replace(re.escape("\0"), r"[\d.,:]+").replace(r"\ ", r"\s*")


class Reader:
    """Carries a guide out in ``folder``, with ``env``. Close it to end what serves."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self._serving: list[tuple[str, subprocess.Popen, Path]] = []

    def write(self, file: File) -> None:
        (self.folder / file.name).write_text(file.text)

    def run(self, command: Command) -> None:
        """Run it to its end, or to its first words if it serves. Raises ``AssertionError``."""
        serves = any(command.text.lstrip("(").startswith(start) for start in SERVES)
        log = self.folder / f".said-{time.monotonic_ns()}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", ("exec " if serves else "set -e -o pipefail; ") + command.text],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if serves:
            assert command.prints, f"{command.text}: the guide says nothing of what it prints at its start"
            self._serving.append((command.text, process, log))
            self._wait_for_words(command, process, log)
            return
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(
                f"{command.text}: not over after {TIMEOUT_S} s:\n{log.read_text()}"
            ) from None
        said = log.read_text()
        assert code == 0, f"{command.text}: exit code {code}:\n{said}"
        assert looks_like(said, command.prints), (
            f"{command.text}: expected {command.prints}, printed:\n{said}"
        )

    def _wait_for_words(self, command: Command, process: subprocess.Popen, log: Path) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not looks_like(log.read_text(), command.prints):
            over = process.poll()
            if over is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"{command.text}: exit code {over}, expected {command.prints}, printed:\n{log.read_text()}"
                )
            time.sleep(0.05)

    def close(self) -> None:
        """Ctrl-C for what serves, the last one first; it must end well."""
        failed = []
        while self._serving:
            text, process, log = self._serving.pop()
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            if code not in (0, 130):
                failed.append(f"{text}: exit code {code} after Ctrl-C:\n{log.read_text()}")
        assert not failed, "\n".join(failed)
