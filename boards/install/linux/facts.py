"""Query a board's properties, and check that it can run a device."""

from __future__ import annotations

from typing import Any

from boards.install.linux.layout import INSTALLED, PREFIX, STAGING, STATE, UNFINISHED, Layout
from boards.install.linux.packages import Target, pythons_of
from boards.install.linux.shell import InstallError, Shell, ask
from boards.profile import Board


def gather_facts(shell: Shell, paths: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the board's properties, what is installed, and the hashes of the files ``paths``.

    Raises:
        InstallError: The board cannot be queried.
    """
    request = {
        "prefix": PREFIX,
        "staging": STAGING,
        "installed": INSTALLED,
        "state": STATE,
        "unfinished": UNFINISHED,
    }
    return ask(shell, "facts", {**request, "paths": list(paths)})


def layout_of(shell: Shell, facts: dict[str, Any]) -> Layout:
    return Layout(shell.root if facts["kind"] == "folder" else "")


def check_facts(shell: Shell, board: Board, facts: dict[str, Any]) -> Target:
    """Check that the board is the named one and can run a device.

    Raises:
        InstallError: The board does not match.
    """
    where, machine = shell.where, facts["machine"]
    if (
        board.install.says_it_is
        and facts["model"]
        and not facts["model"].startswith(board.install.says_it_is)
    ):
        raise InstallError(
            f"{where}: is a {facts['model']}, not a {board.title}; give its --board, or generic-linux"
        )
    if machine not in board.install.machines or facts["bits"] != 64:
        expected = " or ".join(board.install.machines)
        got = f"{machine} with a Python of {facts['bits']} bits"
        raise InstallError(f"{where}: {board.title} needs {expected}, got {got}; put a 64-bit system on it")
    python, pythons = tuple(facts["python"][:2]), pythons_of(board)
    if python not in pythons:
        expected = " or ".join(f"{major}.{minor}" for major, minor in pythons)
        got = ".".join(str(part) for part in python) or "none"
        raise InstallError(f"{where}: {board.title} needs Python {expected} at /usr/bin/python3, got {got}")
    if facts["libc"] != "glibc":
        raise InstallError(f"{where}: LiteRT needs a system with glibc (Debian and its kin), this is another")
    return Target((python[0], python[1]), machine)
