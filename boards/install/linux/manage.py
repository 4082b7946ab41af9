"""Report and remove an installation on a board."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from boards.install.linux.facts import gather_facts
from boards.install.linux.layout import CACHE, PREFIX, SERVICE, STATE, SYSUSERS, TMPFILES, UNIT, USER, WANTED
from boards.install.linux.shell import CommandError, InstallError, Shell, ask
from boards.install.watched import Watched

# Exit code of userdel(8).
NO_SUCH_USER = 6
# Lines of the log in which the last start is looked for.
LOG_LINES = 200
POLL_S = 1.0
# Log entries that follow an answer of the centre. That a record was sent says less: TCP may still hold it, or its key
# may be wrong.
_ANSWERED = ("control_answered", "acknowledged")
_PROPERTIES = ("ActiveState", "SubState", "MainPID", "NRestarts", "MemoryCurrent", "ActiveEnterTimestamp")


@dataclass(frozen=True)
class Status:
    """``installed`` is the record of the installation; ``waiting`` counts records in the spool, None without one;
    ``version`` is that of the bundle in use, 0 for the installed one; ``service`` is systemd's, empty without;
    ``start`` is how its last start went, None without a service."""

    installed: dict[str, Any]
    finished: bool
    version: int
    waiting: int | None
    service: dict[str, str]
    start: Watched | None

    @property
    def exit_code(self) -> int:
        """1 if the installation is unfinished, 3 if the device does not run, 4 if the centre has not answered."""
        return 1 if not self.finished else self.start.exit_code if self.start else 0


def read_status(shell: Shell) -> Status:
    """Return the status of an installation.

    Raises:
        InstallError: Nothing is installed.
    """
    facts = gather_facts(shell)
    installed = _installed(shell, facts)
    service = {}
    if facts["systemd"]:
        shown = shell.run(["systemctl", "show", SERVICE, f"--property={','.join(_PROPERTIES)}"])
        service = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    version = int((facts["slots"] or {}).get("version", 0))
    start = read_start(shell) if service else None
    return Status(installed, not facts["unfinished"], version, facts["waiting"], service, start)


def read_start(shell: Shell) -> Watched:
    """Read how the last start of the service has gone so far, from its log."""
    log = shell.run(["journalctl", "-u", SERVICE, "-o", "cat", "-n", str(LOG_LINES), "--no-pager"])
    answered, error, link, last = False, "", "", ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
            message = entry["message"]
        except (ValueError, TypeError, KeyError):
            # systemd's lines about the service, and the line with which the device gives up.
            last = line.strip() or last
            error = last if last.startswith("error:") else error
            continue
        if message == "started":
            answered, error, link, last = False, "", "", ""
        elif message == "link_down":
            link = f"link down: {entry.get('reason')}"
        elif message in _ANSWERED:
            answered = True
    if not is_active(shell):
        return Watched("stopped", error or last)
    return Watched("hello", "hello answered") if answered else Watched("silent", link or last)


def watch(shell: Shell, wait_s: float) -> Watched:
    """Watch a newly started service until the centre answers it, or until its log says why it stopped.

    Raises:
        InstallError: The connection was lost.
    """
    until_s = time.monotonic() + wait_s
    while (seen := read_start(shell)).state == "silent" and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return seen


def is_active(shell: Shell) -> bool:
    """Return True if the service runs."""
    try:
        shell.run(["systemctl", "is-active", SERVICE])
    except CommandError:
        return False
    return True


def uninstall(shell: Shell, purge: bool) -> list[str]:
    """Stop and remove the device; with ``purge`` its state too. Returns what was removed. Raises ``InstallError``."""
    facts = gather_facts(shell)
    there = facts["installed"] or facts["environments"] or facts["staged"]
    if not there and not (purge and facts["state_there"]):
        raise InstallError(f"{shell.where}: no EPIC device is installed there")
    if facts["systemd"]:
        try:
            shell.run(["systemctl", "disable", "--now", SERVICE])
        except CommandError as error:
            # An interrupted installation may have no unit yet.
            if "does not exist" not in error.said and "not loaded" not in error.said:
                raise
    paths = [WANTED, UNIT, SYSUSERS, TMPFILES, PREFIX, CACHE, *([STATE] if purge else [])]
    removed = ask(shell, "remove", {"paths": paths})["removed"]
    if facts["systemd"]:
        shell.run(["systemctl", "daemon-reload"])
        if purge:
            _remove_user(shell)
    return removed


def _remove_user(shell: Shell) -> None:
    try:
        shell.run(["userdel", USER])
    except CommandError as error:
        # An interrupted installation may not have created it yet.
        if error.code != NO_SUCH_USER:
            raise


def logs_argv(shell: Shell, lines: int, follow: bool) -> list[str]:
    """Return the command that shows the device's log on the board.

    Raises:
        InstallError: systemd keeps no log there.
    """
    if not gather_facts(shell)["systemd"]:
        raise InstallError(
            f"{shell.where}: no systemd, so no log is kept there; see it with: epic board run, which shows it"
        )
    argv = ["journalctl", "-u", SERVICE, "-o", "cat", "-n", str(lines), "--no-pager"]
    return [*argv, "--follow"] if follow else argv


def _installed(shell: Shell, facts: dict[str, Any]) -> dict[str, Any]:
    if not facts["installed"]:
        raise InstallError(
            f"{shell.where}: no EPIC device is installed there; see: epic board install --help"
        )
    return facts["installed"]
