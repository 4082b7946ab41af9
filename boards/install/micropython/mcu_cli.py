"""The part of `epic board install|status|logs|uninstall` that talks to a microcontroller's prompt."""

from __future__ import annotations

import json
from typing import Any

from boards.install.echo import echo
from boards.install.linux.install import take_steps
from boards.install.linux.shell import InstallError
from boards.install.micropython import console
from boards.install.micropython.mcu import McuInstallRequest, make_plan, read_status, uninstall
from boards.install.micropython.mpremote import Prompt
from boards.sizes import format_size


def install_mcu(
    port: str, order: McuInstallRequest, dry_run: bool, wait_s: float = 0.0, as_json: bool = False
) -> int:
    """Install, restart, and watch for ``wait_s`` seconds; return the exit code.

    The code is 0 once the device has sent its HELLO, 3 if it reports an error, 4 if it says nothing. With ``as_json``
    a failed installation is a JSON object too, with code 2.
    """
    report: dict[str, Any] = {"port": port, "board": order.board.name, "device": order.settings.device}
    texts: list[str] = []
    say = texts.append if as_json else echo
    try:
        with Prompt(port) as prompt:
            plan = make_plan(prompt, order)
            for note in plan.notes:
                say(f"note: {note}")
            if dry_run:
                for step in plan.steps:
                    say(f"would {step.text}")
            else:
                take_steps(plan.steps, say)
            if not plan.steps:
                say(f"{port}: all is in place, nothing to change")
            if plan.facts.get("boot"):
                say("boot.py there is another's: it stays, and runs before the device")
        code = 0
        if not dry_run and wait_s:
            say(f"{port}: the board starts anew; watched for {wait_s:.0f} s")
            seen = console.watch(port, wait_s)
            report |= {"state": seen.state, "said": seen.said}
            code = seen.exit_code
            say(_outcome(port, seen, wait_s))
    except InstallError as error:
        if not as_json:
            raise
        report |= {"state": "not installed", "said": str(error)}
        code = 2
    if as_json:
        echo(json.dumps({**report, "steps": texts, "exit_code": code}))
    return code


def _outcome(port: str, seen: console.Watched, wait_s: float) -> str:
    if seen.state == "hello":
        return f"{port}: {seen.said.removeprefix(console.SAID)}. At the other end of its line: epic central devices"
    if seen.state == "stopped":
        return f"{port}: the device does not run: {seen.said}"
    last = f"the last line was {seen.said!r}" if seen.said else "nothing was said"
    return f"{port}: no HELLO within {wait_s:.0f} s; {last}; see: epic board logs --port {port}"


def status_mcu(port: str, as_json: bool) -> int:
    """Show what is installed and whether it runs; 1 if the installation is unfinished, 3 if the device does not run."""
    with Prompt(port) as prompt:
        found = read_status(prompt)
    state = found["device_state"]
    code = 1 if found["damaged"] else 0 if state["running"] else 3
    if as_json:
        echo(json.dumps({"port": port, **found, "exit_code": code}))
        return code
    echo(f"{port}: device {found['device']} of survey {found['survey']} on {found['board']}")
    echo(f"bundle     {found['bundle']} {found['model_hash']}, firmware {found['firmware']}")
    echo(f"board      {state['machine']}, MicroPython {state['version']}")
    if found["damaged"]:
        echo(f"unfinished: {', '.join(found['damaged'])} not as installed; run the installation again")
    echo(f"state      {'ran' if state['running'] else state['stopped'] or 'did not run'}")
    if "waiting" in state:
        echo(
            f"spool      {state['waiting']} records wait, {state['dropped']} dropped, {state['refused']} refused"
        )
        if state["last_error"]:
            echo(f"last error {state['last_error']}, of an earlier start")
    if state["heap_bytes"] is not None:
        echo(f"heap       {format_size(state['heap_bytes'])} free")
    echo("           to look interrupts it; it starts anew")
    return code


def logs_mcu(port: str, n_lines: int, follow: bool) -> None:
    """Show the board's output from now on, without interrupting it."""
    for number, line in enumerate(console.lines(port, None), start=1):
        echo(line)
        if not follow and number >= n_lines:
            return


def uninstall_mcu(port: str, purge: bool) -> None:
    with Prompt(port) as prompt:
        removed = uninstall(prompt, purge)
    echo(f"{port}: removed {len(removed)} files and folders")
    if not purge:
        echo(
            "Left: the spool, with its records and the count of starts. To remove it: epic board uninstall --purge"
        )
