"""Run commands on a board: over ssh as root, or on this machine for a root folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from boards.errors import BoardsError

AGENT = (Path(__file__).parent / "on_board.py").read_text(encoding="utf-8")
CONNECT_TIMEOUT_S = 10
# Keep-alive interval, seconds; ssh gives up after three unanswered ones.
ALIVE_S = 5
SSH_FAILED = 255
NOT_FOUND = 127


class InstallError(BoardsError, RuntimeError):
    """The board cannot be reached, or does not meet the installation's requirements."""


class CommandError(InstallError):
    """A command on the board failed; ``said`` is its last line on standard error."""

    def __init__(self, where: str, argv: list[str], code: int, errors: str) -> None:
        lines = [line for line in errors.splitlines() if line.strip()]
        self.code = code
        self.said = lines[-1].strip() if lines else f"exit code {code}, no message"
        super().__init__(f"{where}: {argv[0]}: {self.said}")


class Shell(Protocol):
    """Place where commands run; ``where`` names it in messages, ``root`` is its file system's root."""

    where: str
    root: str
    python: str

    def run(self, argv: list[str], data: bytes = b"") -> str:
        """Standard output of a command. Raises ``CommandError``; ``InstallError`` for a lost connection."""
        ...

    def stream(self, argv: list[str]) -> int:
        """Run a command that writes to this process's output; return its exit code."""
        ...


def ask(shell: Shell, operation: str, request: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
    """Call ``boards/install/linux/on_board.py`` on the board and return its answer.

    Raises:
        InstallError: The call failed.
    """
    try:
        said = shell.run(
            [shell.python, "-c", AGENT, operation, json.dumps({"root": shell.root, **request})], data
        )
    except CommandError as error:
        if error.code == NOT_FOUND:
            raise InstallError(
                f"{shell.where}: no python3 there; put Python 3.11 or later on it: apt install python3"
            ) from None
        raise
    # A login shell may print a greeting first.
    lines = said.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise InstallError(
            f"{shell.where}: expected an answer in JSON, got {said[-80:]!r}; does the login run a shell?"
        ) from None
    if "error" in answer:
        raise InstallError(f"{shell.where}: {operation}: {answer['error']}")
    return answer["answer"]


class LocalShell:
    """Shell on this machine, for a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.where = self.root
        self.python = sys.executable

    def run(self, argv: list[str], data: bytes = b"") -> str:
        done = subprocess.run(argv, input=data, capture_output=True, check=False)
        if done.returncode:
            raise CommandError(self.where, argv, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def stream(self, argv: list[str]) -> int:
        return _stream(argv)


class SshShell:
    """Shell on a board over the system's ssh, with one connection for all commands; opened by ``with``.

    ``host`` is ssh's destination, ``config`` replaces ~/.ssh/config. Nothing is asked: keys must be set up, and the
    board's host key known. Commands run as root, through sudo for other users.
    """

    root = "/"
    # Use the system's Python: the service's user cannot run one that only root can access.
    python = "/usr/bin/python3"

    def __init__(self, host: str, config: Path | None = None) -> None:
        # ssh would take a word that begins with a dash as an option.
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise InstallError(f"--host: expected user@address or user@address:port, got {host!r}")
        if re.fullmatch(r"[^:/\[\]]+:\d{1,5}", host):
            # How ssh itself takes a port.
            host = f"ssh://{host}"
        if shutil.which("ssh") is None:
            raise InstallError("--host needs the program ssh; install it: apt install openssh-client")
        self.where = host
        self._sudo: list[str] = []
        # A short path: socket paths are limited to about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="epic-", dir="/tmp"))
        self._options = [
            *(["-F", str(config)] if config else []),
            *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"),
            *("-o", f"ServerAliveInterval={ALIVE_S}", "-o", "ServerAliveCountMax=3"),
            *("-S", str(self._folder / "s")),
        ]

    def __enter__(self) -> SshShell:
        try:
            self._connect()
        except BaseException:
            # A failure after the connection, for example of sudo, would leave ssh's process behind.
            self._disconnect()
            raise
        return self

    def _connect(self) -> None:
        # A file, not a pipe: ssh's background process keeps its standard error open.
        with (self._folder / "errors").open("w+b") as errors:
            code = subprocess.run(
                ["ssh", *self._options, "-M", "-N", "-f", "--", self.where],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                check=False,
            ).returncode
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        if code:
            raise InstallError(explain(self.where, said))
        if self.run(["id", "-u"]).strip().splitlines()[-1:] != ["0"]:
            self._sudo = ["sudo", "-n"]
            try:
                self.run(["true"])
            except CommandError as error:
                raise InstallError(
                    f"{self.where}: needs root, and sudo says: {error.said}; log in as root, or allow sudo "
                    "without a password"
                ) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        subprocess.run(
            ["ssh", *self._options, "-O", "exit", "--", self.where], capture_output=True, check=False
        )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, argv: list[str], *options: str) -> list[str]:
        return ["ssh", *self._options, *options, "--", self.where, shlex.join([*self._sudo, *argv])]

    def run(self, argv: list[str], data: bytes = b"") -> str:
        done = subprocess.run(self._command(argv), input=data, capture_output=True, check=False)
        errors = done.stderr.decode(errors="replace")
        if done.returncode == SSH_FAILED:
            raise InstallError(explain(self.where, errors))
        if done.returncode:
            raise CommandError(self.where, argv, done.returncode, errors)
        return done.stdout.decode(errors="replace")

    def stream(self, argv: list[str]) -> int:
        # Allocate a terminal, so that the remote command ends with this process.
        return _stream(self._command(argv, "-tt"))


def _stream(argv: list[str]) -> int:
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        return child.wait()


# Part of ssh's message -> advice.
_ADVICE = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is another than last time; if the board was installed anew, remove its old line from "
        "known_hosts (ssh {host} names file and line); if not, something else answers at this address",
    ),
    (
        "Host key verification failed",
        "its host key is not known here; connect once by hand and compare the fingerprint: ssh {host}",
    ),
    (
        "Permission denied",
        "it does not let this user in by key; put one there: ssh-copy-id {host}",
    ),
    ("Could not resolve hostname", "no such name; check the address, or that the board is on the network"),
    ("Connection refused", "nothing listens for ssh there; enable ssh on the board"),
    ("No route to host", "not on the network; check power, cable and address"),
    ("Network is unreachable", "this machine has no way there; check its network"),
    ("timed out", "no answer; check power, cable and address"),
)


def explain(host: str, said: str) -> str:
    """Explain in one line why ssh failed."""
    for sign, advice in _ADVICE:
        if sign in said:
            return f"{host}: {advice.format(host=host)}"
    lines = [line for line in said.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "no message"
    return f"{host}: the connection was lost ({reason}); run the same command again, it goes on where it was"
