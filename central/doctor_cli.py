"""``epic doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from central.options import CONFIG_VARIABLE
from firmware_py.protocol.printable import printable_lines

app = typer.Typer(help="Check an installation and report what to fix.")


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=CONFIG_VARIABLE,
            help="central.toml of the centre to check. Default: the one in this folder.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read the whole store to find damage: minutes for a large one.")
    ] = False,
    thorough: Annotated[bool, typer.Option("--thorough", hidden=True)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check installation, clock and, with --config, keys, models, ports, disk and store. Exit 1: a FAIL."""
    from central.doctor import FAIL, OK, WARN, examine

    if thorough:
        typer.echo("--thorough is deprecated; use --full", err=True)
    if config is None and Path("central.toml").exists():
        config = Path("central.toml")
    findings = examine(config, full or thorough)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.text import Text

        colours = {OK: "green", WARN: "yellow", FAIL: "red"}
        console = Console(soft_wrap=True)
        for finding in findings:
            mark = (f"{finding.state:<4}", colours[finding.state])
            console.print(
                Text.assemble(mark, f"  {printable_lines(finding.about)}: {printable_lines(finding.said)}")
            )
            if finding.advice:
                console.print(Text(f"      → {printable_lines(finding.advice)}"))
    if any(finding.state == FAIL for finding in findings):
        raise typer.Exit(1)
