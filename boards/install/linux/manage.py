"""Report and remove an installation on a board."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boards.install.linux.facts import gather_facts
from boards.install.linux.layout import CACHE, PREFIX, SERVICE, STATE, SYSUSERS, TMPFILES, UNIT, USER, WANTED
from boards.install.linux.shell import CommandError, InstallError, Shell, ask

# Exit code of userdel(8).
NO_SUCH_USER = 6
_PROPERTIES = ("ActiveState", "SubState", "MainPID", "NRestarts", "MemoryCurrent", "ActiveEnterTimestamp")


@dataclass(frozen=True)
class Status:
    """``installed`` is the record of the installation; ``waiting`` counts records in the spool, None without one;
    ``version`` is that of the bundle in use, 0 for the installed one; ``service`` is systemd's, empty without."""

    installed: dict[str, Any]
    finished: bool
    version: int
    waiting: int | None
    service: dict[str, str]


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
    return Status(installed, not facts["unfinished"], version, facts["waiting"], service)


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
