"""`epic board install|run|status|logs|uninstall`: a device on a Linux board, over ssh, or in a root folder; on a
microcontroller over its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from boards.install.echo import echo
from boards.install.linux.contents import InstallRequest
from boards.install.linux.install import Plan, carry_out, make_plan
from boards.install.linux.layout import SERVICE, STATE
from boards.install.linux.manage import logs_argv, read_status, uninstall, watch
from boards.install.linux.shell import InstallError, LocalShell, Shell, SshShell
from boards.install.micropython.mcu import McuInstallRequest
from boards.install.micropython.mcu_cli import install_mcu, logs_mcu, status_mcu, uninstall_mcu
from boards.install.settings import Settings
from boards.install.watched import Watched
from boards.profile import Board, load_board

BoardName = Annotated[
    str, typer.Option("--board", help="Board, as `epic board list` names it, or a profile FILE.toml.")
]
Bundle = Annotated[Path, typer.Option("--bundle", help="Bundle folder, as `epic convert` writes it.")]
Host = Annotated[str, typer.Option("--host", help="A Linux board on the network: user@address[:port].")]
Port = Annotated[
    str, typer.Option("--port", help="A microcontroller's prompt, as mpremote names it: /dev/ttyACM0.")
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Root folder: a mounted image, or an empty folder for a device on this machine."
    ),
]
SshConfig = Annotated[
    Path | None,
    typer.Option("--ssh-config", help="SSH configuration file. Default: ~/.ssh/config.", exists=True),
]
Device = Annotated[int, typer.Option("--device", help="The device's number in the survey.", min=0, max=65535)]
Survey = Annotated[int, typer.Option("--survey", help="The survey's number.", min=0, max=65535)]
Endpoint = Annotated[
    str,
    typer.Option(
        help="tcp://HOST:PORT is the centre, HOST:PORT a gateway, /dev/NAME a serial port of the board; "
        "uart:N, uart:N:TX:RX or usb:1 of a microcontroller, as `epic board show` lists them, or a gateway over Wi-Fi."
    ),
]
Keys = Annotated[
    Path, typer.Option("--keys", help="The centre's key folder, or what `epic keys new` made in it.")
]
Baud = Annotated[int, typer.Option("--baud", help="Baud rate of the board's serial port.", min=1)]
Incoming = Annotated[
    str, typer.Option("--incoming", help="Folder on the board that is watched for recordings.")
]
Replay = Annotated[
    list[str] | None,
    typer.Option("--replay", help="File of gathers on the board to replay instead; repeatable."),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(
        "--signing-key",
        help="Public signing key (signing.public); the device accepts updates signed with it.",
        exists=True,
    ),
]
Wheels = Annotated[
    Path | None, typer.Option("--wheels", help="Folder of the packages' wheels; nothing is downloaded then.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the steps without running them.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def install(
    board: BoardName,
    bundle: Bundle,
    device: Device,
    endpoint: Endpoint,
    keys: Keys,
    host: Host = "",
    root: Root = None,
    port: Port = "",
    ssh_config: SshConfig = None,
    survey: Survey = 1,
    baud: Baud = 115_200,
    incoming: Incoming = f"{STATE}/incoming",
    replay: Replay = None,
    digitiser: Annotated[
        Path | None,
        typer.Option("--digitiser", help="Microcontroller only: the module FILE.py with open_source."),
    ] = None,
    step: Annotated[
        float,
        typer.Option("--step", help="Microcontroller only: amplitude of one count of --replay.", min=0),
    ] = 0.0,
    ssid: Annotated[
        str, typer.Option("--ssid", help="Microcontroller only: name of the Wi-Fi network.")
    ] = "",
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file", help="File that holds the Wi-Fi's password.", exists=True, dir_okay=False
        ),
    ] = None,
    signing_key: SigningKey = None,
    wheels: Wheels = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Microcontroller only: keep a foreign main.py under another name."),
    ] = False,
    no_start: Annotated[
        bool,
        typer.Option(
            "--no-start",
            help="Do not start or restart the service; on a microcontroller, do not watch the start.",
        ),
    ] = False,
    wait_s: Annotated[
        float,
        typer.Option("--wait", help="Seconds to wait for the centre's answer; 0 does not watch.", min=0),
    ] = 120.0,
    dry_run: DryRun = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Microcontroller only: print one JSON object, for errors too.")
    ] = False,
) -> None:
    """Put a device onto a board: packages, firmware, bundle, keys, service. Run again, it copies what changed.

    The device is watched until the centre answers its HELLO: exit code 0; 3 if it gives up, with its last line; 4
    without an answer. A microcontroller is watched until it has sent its HELLO.
    """
    profile = load_board(board)
    settings = Settings(device, endpoint, keys, survey, baud, incoming, tuple(replay or ()), signing_key)
    if port or profile.install.by == "mpremote":
        _only_port(profile, port, host, root)
        password = password_file.read_text().strip() if password_file else ""
        request = McuInstallRequest(profile, bundle, settings, digitiser, step, ssid, password, replace)
        raise typer.Exit(install_mcu(port, request, dry_run, 0.0 if no_start else wait_s, as_json))
    profile = _installable(board)
    with _reach(host, root, ssh_config) as shell:
        plan = _install(shell, InstallRequest(profile, bundle, settings, wheels, not no_start), dry_run)
        if dry_run:
            return
        echo(_ending(plan, shell, not no_start))
        if wait_s and plan.steps and plan.facts["systemd"] and not no_start:
            seen = watch(shell, wait_s)
            echo(_outcome(shell, seen, wait_s))
            raise typer.Exit(seen.exit_code)


def run(
    board: BoardName,
    bundle: Bundle,
    device: Device,
    endpoint: Endpoint,
    keys: Keys,
    host: Host = "",
    root: Root = None,
    ssh_config: SshConfig = None,
    survey: Survey = 1,
    baud: Baud = 115_200,
    incoming: Incoming = f"{STATE}/incoming",
    replay: Replay = None,
    signing_key: SigningKey = None,
    wheels: Wheels = None,
) -> None:
    """Check, install, start, and show the log until Ctrl-C. A systemd service then keeps running."""
    profile = _installable(board)
    settings = Settings(device, endpoint, keys, survey, baud, incoming, tuple(replay or ()), signing_key)
    with _reach(host, root, ssh_config) as shell:
        plan = _install(shell, InstallRequest(profile, bundle, settings, wheels), dry_run=False)
        if plan.facts["kind"] == "image":
            raise InstallError(f"{shell.where}: an image cannot be run here; start the board with it")
        if plan.facts["systemd"]:
            echo(f"{SERVICE} runs; its log (Ctrl-C leaves it running):")
            code = shell.stream(logs_argv(shell, 10, follow=True))
        else:
            echo("No systemd there: the device runs as long as this command; its log (Ctrl-C ends it):")
            code = shell.stream(plan.layout.run_argv("run"))
    raise typer.Exit(code if code > 0 else 0)


def status(
    host: Host = "", root: Root = None, port: Port = "", ssh_config: SshConfig = None, as_json: Json = False
) -> None:
    """Show what is installed on a board, whether it runs, and how many records are unsent.

    Exit code 1 if the installation is unfinished, 3 if the device does not run, 4 if the centre has not answered.
    """
    if port:
        raise typer.Exit(status_mcu(port, as_json))
    with _reach(host, root, ssh_config) as shell:
        found = read_status(shell)
    if as_json:
        echo(json.dumps({**asdict(found), "exit_code": found.exit_code}))
        raise typer.Exit(found.exit_code)
    said = found.installed
    echo(f"{shell.where}: device {said['device']} of survey {said['survey']} on {said['board']}")
    echo(f"bundle     {said['bundle']} {said['model_hash']}, firmware {said['firmware']}")
    if found.version:
        echo(f"           version {found.version} is in use, which came by an update")
    if not found.finished:
        echo("unfinished: the last installation was cut off; run it again")
    echo(f"spool      {'none yet' if found.waiting is None else f'{found.waiting} records wait'}")
    service = found.service
    if service:
        memory = service.get("MemoryCurrent", "")
        echo(
            f"service    {service.get('ActiveState')} ({service.get('SubState')}) since "
            f"{service.get('ActiveEnterTimestamp') or 'never'}, {service.get('NRestarts')} restarts"
            + (f", {int(memory) / 2**20:.0f} MiB" if memory.isdigit() else "")
        )
    else:
        echo("service    no systemd there")
    if found.start:
        last = found.start.said or "nothing in its log"
        echo(f"start      {last if found.start.state == 'hello' else f'no answer of the centre: {last}'}")
    raise typer.Exit(found.exit_code)


def logs(
    host: Host = "",
    port: Port = "",
    ssh_config: SshConfig = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Number of last lines to show.", min=1)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until Ctrl-C.")] = False,
) -> None:
    """Show the log of a board's device, one JSON object a line; on a microcontroller, its output from now on."""
    if port:
        logs_mcu(port, lines, follow)
        return
    with _reach(host, None, ssh_config) as shell:
        raise typer.Exit(max(shell.stream(logs_argv(shell, lines, follow)), 0))


def remove(
    host: Host = "",
    root: Root = None,
    port: Port = "",
    ssh_config: SshConfig = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the spool and its unsent records too.")
    ] = False,
) -> None:
    """Remove the device's software from a board. Its spool stays, unless --purge."""
    if port:
        uninstall_mcu(port, purge)
        return
    with _reach(host, root, ssh_config) as shell:
        removed = uninstall(shell, purge)
    echo(f"{shell.where}: removed {', '.join(removed)}")
    if not purge:
        echo(f"Left: {STATE} with spool and recordings. To remove it: epic board uninstall --purge")


def add_commands(app: typer.Typer) -> None:
    for command in (install, run, status, logs):
        app.command()(command)
    app.command("uninstall")(remove)


def _installable(name: str) -> Board:
    board = load_board(name)
    if board.install.by == "mpremote":
        raise InstallError(
            f"{board.title}: runs by itself once installed; epic board install --port does that"
        )
    if board.install.by != "ssh":
        raise InstallError(f"{board.title}: not installed over ssh; {board.install.how}")
    return board


def _only_port(board: Board, port: str, host: str, root: Path | None) -> None:
    if board.install.by != "mpremote":
        raise InstallError(f"{board.title}: has no prompt for --port; {board.install.how}")
    if not port or host or root:
        raise InstallError(f"{board.title}: expected --port, the board's prompt, and no --host or --root")


@contextmanager
def _reach(host: str, root: Path | None, ssh_config: Path | None) -> Iterator[Shell]:
    if bool(host) == bool(root):
        raise InstallError("expected either --host user@address or --root DIR (--port of a microcontroller)")
    if root:
        if root.resolve() == Path("/"):
            raise InstallError("--root /: to install on this machine itself give --host root@localhost")
        yield LocalShell(root)
        return
    with SshShell(host, ssh_config) as shell:
        yield shell


def _install(shell: Shell, order: InstallRequest, dry_run: bool) -> Plan:
    plan = make_plan(shell, order)
    for note in plan.notes:
        echo(f"note: {note}")
    if dry_run:
        for step in plan.steps:
            echo(f"would {step.text}")
    else:
        carry_out(shell, plan, echo)
    if not plan.steps:
        echo(f"{shell.where}: all is in place, nothing to change")
    return plan


def _outcome(shell: Shell, seen: Watched, wait_s: float) -> str:
    if seen.state == "hello":
        return f"{shell.where}: hello answered. At the centre: epic central devices"
    if seen.state == "stopped":
        return f"{shell.where}: the device does not run: {seen.said}"
    last = seen.said or "its log says nothing"
    return (
        f"{shell.where}: no answer of the centre within {wait_s:.0f} s; {last}; see: epic board logs --host "
        f"{shell.where}"
    )


def _ending(plan: Plan, shell: Shell, start: bool) -> str:
    kind = plan.facts["kind"]
    if kind == "image":
        return "Not started: an image; the device starts with the board."
    if kind == "folder":
        return f"Not started: a folder. Run it: {' '.join(plan.layout.run_argv('run'))}"
    if not plan.facts["systemd"]:
        return "Not started: no systemd there. To run it while you look: epic board run"
    if not start:
        return f"Not started, as asked: systemctl restart {SERVICE} does."
    return (
        f"{SERVICE} runs. Next: epic board status --host {shell.where}, epic board logs --host {shell.where}"
    )
