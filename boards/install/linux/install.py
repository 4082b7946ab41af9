"""Install a device on a Linux board or into a root folder; only files with a different hash are copied.

It gathers facts, makes a plan, and carries out the steps in order. An interrupted step is detected and repeated by the
next run; a run with nothing to do says so. Packages go into a folder named by its content, and files wait in a staging
folder until all have arrived. A running device is not disturbed until then.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boards.fit.check import check_bundle
from boards.install.linux.contents import Content, InstallRequest, contents, digest, digest_of, record
from boards.install.linux.facts import check_facts, gather_facts, layout_of
from boards.install.linux.layout import (
    INSTALLED,
    PREFIX,
    SERVICE,
    STAGING,
    STATE,
    SYSUSERS,
    TMPFILES,
    UNFINISHED,
    USER,
    WANTED,
    Layout,
)
from boards.install.linux.manage import is_active
from boards.install.linux.packages import Target, find_wheels, pins_of, unpacked_bytes
from boards.install.linux.shell import CommandError, InstallError, Shell, ask
from boards.profile import Board
from boards.sizes import format_size
from firmware_py.inference.bundle import MANIFEST

# Required disk space: the spool, two bundle slots and a margin.
SPARE_BYTES = 32 << 20
CLOCK_TOLERANCE_S = 300


@dataclass(frozen=True)
class Step:
    """Step of a plan; ``action`` carries it out and returns text to add to its line."""

    text: str
    action: Callable[[], str | None]


@dataclass(frozen=True)
class Plan:
    """``notes`` for the person who installs, and ``steps`` in order."""

    layout: Layout
    facts: dict[str, Any]
    notes: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _Changes:
    """Difference between an installation and what is on the board.

    ``files`` and ``links`` are by path. ``stale`` are paths to remove. ``packages`` are wheels to unpack into the
    folder ``environment``.
    """

    files: dict[str, Content]
    links: dict[str, str]
    stale: list[str]
    packages: list[Content]
    environment: str

    def contents(self) -> list[Content]:
        """Return the wheels and files, each content once."""
        return list({content.sha256: content for content in (*self.packages, *self.files.values())}.values())


def check_fit(bundle: Path, board: Board, asked_there: tuple[str, ...] = ()) -> None:
    """Check the bundle before any installation, except the questions ``asked_there``, which the board itself answers.

    Raises:
        InstallError: The bundle does not fit the board.
    """
    verdicts = check_bundle(bundle, board).verdicts
    bad = [verdict for verdict in verdicts if verdict.fits is False and verdict.question not in asked_there]
    if bad:
        raise InstallError(
            f"{bundle} does not fit {board.title}: {bad[0].question}: {bad[0].said}; "
            f"see: epic board check {bundle} --board {board.name}"
        )


def make_plan(shell: Shell, order: InstallRequest) -> Plan:
    """Return the plan of an installation; changes nothing.

    Raises:
        InstallError: The installation is impossible.
    """
    check_fit(order.bundle, order.board)
    facts = gather_facts(shell)
    layout = layout_of(shell, facts)
    files = contents(order, layout)
    links = {WANTED: f"../{SERVICE}.service"}
    target = check_facts(shell, order.board, facts)
    wheels = find_wheels(pins_of(order.board), target, order.wheels)
    packages = [Content(path.read_bytes()) for path in wheels]
    environment = f"venv-{digest(*(package.sha256 for package in packages))[:12]}"
    links[f"{PREFIX}/venv"] = environment
    files[INSTALLED] = Content(record(order, files, links, environment))
    facts = gather_facts(shell, (*files, *links))

    changes = _Changes(
        files={path: new for path, new in files.items() if not _same(facts["files"][path], new)},
        links={path: to for path, to in links.items() if facts["files"][path] != {"target": to}},
        stale=_stale(facts, environment),
        packages=[] if environment in facts["environments"] else packages,
        environment=f"{PREFIX}/{environment}",
    )
    to_send = [content for content in changes.contents() if content.sha256 not in facts["staged"]]
    needed_bytes = sum(len(content.data) for content in to_send) + SPARE_BYTES
    if changes.packages:
        needed_bytes += unpacked_bytes(wheels)
    if facts["free_bytes"] < needed_bytes:
        raise InstallError(
            f"{shell.where}: {PREFIX}: needs {format_size(needed_bytes)} free, there are "
            f"{format_size(facts['free_bytes'])}; make room, or use a larger card"
        )

    steps = _change_steps(shell, changes, to_send, target)
    unfinished = bool(steps) or facts["unfinished"]
    if facts["systemd"]:
        steps += _system_steps(shell, order, layout, unfinished)
    elif unfinished and facts["kind"] != "image":
        steps.append(_check_step(shell, layout, as_user=False))
    return Plan(layout, facts, _notes(order, facts), tuple(steps))


def take_steps(steps: tuple[Step, ...], say: Callable[[str], None]) -> None:
    """Announce and carry out each step.

    Raises:
        InstallError: A step failed.
    """
    for step in steps:
        say(step.text)
        if more := step.action():
            say(f"  {more}")


def carry_out(shell: Shell, plan: Plan, say: Callable[[str], None]) -> None:
    """Carry out the steps of ``plan``.

    Raises:
        InstallError: A step failed.
    """
    take_steps(plan.steps, say)
    if plan.steps:
        ask(shell, "remove", {"paths": [UNFINISHED]})


def _notes(order: InstallRequest, facts: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if facts["kind"] == "folder":
        notes.append("a plain folder: installed for this machine's Python, and run from there")
    behind_s = time.time() - facts["clock_s"]
    if abs(behind_s) > CLOCK_TOLERANCE_S:
        notes.append(
            f"the board's clock is {abs(behind_s) / 3600:.1f} h {'behind' if behind_s > 0 else 'ahead'}: "
            "records would carry wrong times; set it"
        )
    version = (facts["slots"] or {}).get("version")
    if version:
        same = (facts["slots"] or {}).get("seed") == digest_of((order.bundle / MANIFEST).read_bytes())
        notes.append(
            f"bundle version {version} came by an update and stays in use: this bundle is the one it came after"
            if same
            else f"this bundle takes the place of version {version}, which came by an update"
        )
    return tuple(notes)


def _change_steps(shell: Shell, changes: _Changes, to_send: list[Content], target: Target) -> list[Step]:
    steps = []
    if to_send:
        size = format_size(sum(len(content.data) for content in to_send))
        steps.append(Step(f"copy {len(to_send)} files, {size}", lambda: _send(shell, to_send)))
    if changes.packages:
        request = {
            "folder": changes.environment,
            "staging": STAGING,
            "wheels": [package.sha256 for package in changes.packages],
        }
        steps.append(
            Step(
                f"unpack {len(changes.packages)} packages for {target} into {changes.environment}",
                lambda: _done(ask(shell, "environment", request)),
            )
        )
    if changes.files or changes.links or changes.stale:
        commit = {
            "staging": STAGING,
            "folders": [[STATE, None], [f"{STATE}/incoming", None], [f"{PREFIX}/keys", 0o750]],
            "files": [[path, new.sha256, new.mode] for path, new in changes.files.items()],
            "links": list(changes.links.items()),
            "remove": changes.stale,
            "unfinished": UNFINISHED,
        }
        shown = ", ".join(
            sorted({_shown(path) for path in (*changes.files, *changes.links)} - {"installed.json"})
        )
        removed = f"; remove {', '.join(changes.stale)}" if changes.stale else ""
        steps.append(
            Step(f"put in place {shown or 'nothing'}{removed}", lambda: _put(shell, commit, changes.files))
        )
    return steps


def _system_steps(shell: Shell, order: InstallRequest, layout: Layout, changed: bool) -> list[Step]:
    if not changed:
        if not order.start or is_active(shell):
            return []
        return [_start_step(shell)]
    steps = [
        Step(
            f"make the user {USER} and its folders",
            lambda: _run_all(
                shell, ["systemd-sysusers", SYSUSERS], ["systemd-tmpfiles", "--create", TMPFILES]
            ),
        ),
        _check_step(shell, layout, as_user=True),
        Step("read the unit", lambda: _run_all(shell, ["systemctl", "daemon-reload"])),
    ]
    return [*steps, _start_step(shell)] if order.start else steps


def _check_step(shell: Shell, layout: Layout, as_user: bool) -> Step:
    argv = layout.run_argv("check")
    user = ["runuser", "-u", USER, "--"] if as_user else []
    return Step("try bundle, runtime and source there", lambda: shell.run([*user, *argv]).strip())


def _start_step(shell: Shell) -> Step:
    def start() -> None:
        try:
            shell.run(["systemctl", "restart", SERVICE])
        except CommandError:
            log = shell.run(["journalctl", "-u", SERVICE, "-o", "cat", "-n", "3", "--no-pager"])
            raise InstallError(
                f"{shell.where}: {SERVICE} does not start; its log ends: {' / '.join(log.split(chr(10)))}"
            ) from None

    return Step(f"start {SERVICE}", start)


def _send(shell: Shell, items: list[Content]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for item in items:
            entry = tarfile.TarInfo(item.sha256)
            entry.size = len(item.data)
            archive.addfile(entry, io.BytesIO(item.data))
    kept = ask(shell, "receive", {"staging": STAGING}, buffer.getvalue())["kept"]
    if kept != len(items):
        raise InstallError(f"{shell.where}: {len(items) - kept} files arrived damaged; run it again")


def _put(shell: Shell, commit: dict[str, Any], changed: dict[str, Content]) -> None:
    ask(shell, "commit", commit)
    found = gather_facts(shell, tuple(changed))["files"]
    wrong = [path for path, new in changed.items() if not _same(found[path], new)]
    if wrong:
        raise InstallError(
            f"{shell.where}: {wrong[0]}: read back, it is not what was written; is the card bad?"
        )


def _run_all(shell: Shell, *commands: list[str]) -> None:
    for argv in commands:
        shell.run(argv)


def _done(_: object) -> None:
    return None


def _same(found: dict[str, Any] | None, new: Content) -> bool:
    return found == {"sha256": new.sha256, "mode": new.mode}


def _stale(facts: dict[str, Any], environment: str) -> list[str]:
    """Return the files of an earlier installation that this one does not include."""
    before = facts["installed"] or {}
    stale = [path for path in before.get("paths", ()) if path not in facts["files"]]
    environments = {*facts["environments"], before.get("environment", environment)} - {environment, "venv"}
    return stale + [f"{PREFIX}/{name}" for name in sorted(environments)]


def _shown(path: str) -> str:
    """Return the part of the installation that a file belongs to."""
    return path.removeprefix(f"{PREFIX}/").split("/")[0] if path.startswith(PREFIX) else path
