"""The part of `epic board install|status|uninstall` that talks to a microcontroller's prompt."""

from __future__ import annotations

import json

import typer

from boards.install.linux.install import take_steps
from boards.install.micropython.mcu import BOOT, SPOOL, McuInstallRequest, make_plan, read_status, uninstall
from boards.install.micropython.mpremote import Prompt


def install_mcu(port: str, order: McuInstallRequest, dry_run: bool) -> None:
    with Prompt(port) as prompt:
        plan = make_plan(prompt, order)
        if dry_run:
            for step in plan.steps:
                typer.echo(f"would {step.text}")
        else:
            take_steps(plan.steps, typer.echo)
        if not plan.steps:
            typer.echo(f"{port}: all is in place, nothing to change")
    if not dry_run:
        typer.echo(f"{port}: the board starts anew. Next: what it says, mpremote connect {port} repl")
        typer.echo("At the other end of its line: epic central gateway --port")


def status_mcu(port: str, as_json: bool) -> None:
    with Prompt(port) as prompt:
        found = read_status(prompt)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{port}: device {found['device']} of survey {found['survey']} on {found['board']}")
    typer.echo(f"bundle     {found['bundle']} {found['model_hash']}, firmware {found['firmware']}")
    if found["damaged"]:
        typer.echo(f"unfinished: {', '.join(found['damaged'])} not as installed; run the installation again")
    typer.echo("           to look interrupts it; it starts anew")


def uninstall_mcu(port: str, purge: bool) -> None:
    with Prompt(port) as prompt:
        removed = uninstall(prompt, purge)
    typer.echo(f"{port}: removed {len(removed)} files and folders")
    if not purge:
        typer.echo(f"Left: {SPOOL} and {BOOT}. To remove them: epic board uninstall --purge")
