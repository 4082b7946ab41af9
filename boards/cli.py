"""`epic board`: what boards there are, what each carries, and whether a bundle fits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from boards.fit.check import Assessment, check_bundle
from boards.install.cli import add_commands
from boards.profile import Board, board_names, load_board
from boards.sizes import format_size

app = typer.Typer(
    help="Board profiles, a check whether a bundle fits, and installation.",
    no_args_is_help=True,
)
add_commands(app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_boards(as_json: Json = False) -> None:
    """List the boards that have a profile."""
    boards = [load_board(name) for name in board_names()]
    if as_json:
        typer.echo(json.dumps([board.model_dump(mode="json") for board in boards], indent=2))
        return
    # Fits 80 columns; `epic board show` has the rest.
    table = Table()
    # The name is what --board needs: never cut.
    table.add_column("board", no_wrap=True, min_width=max(len(board.name) for board in boards))
    table.add_column("runtime", overflow="fold")
    table.add_column("memory", no_wrap=True)
    table.add_column("inference", no_wrap=True)
    table.add_column("installed by", overflow="fold")
    for board in boards:
        table.add_row(
            board.name,
            board.runtime,
            format_size(board.memory.size),
            f"{board.inference.seconds:g} s" if board.inference else "",
            board.served_by.removeprefix("epic board "),
        )
    Console().print(table)
    typer.echo(
        "Next: epic board show BOARD (processor, arena, model), or epic board check BUNDLE --board BOARD"
    )


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Board, as `epic board list` names it, or a profile FILE.toml.")
    ],
    as_json: Json = False,
) -> None:
    """Show a board's profile and the source of each figure."""
    board = load_board(name)
    if as_json:
        typer.echo(board.model_dump_json(indent=2))
        return
    table = Table("what", "value", "source", title=board.title)
    for what, value, source in _rows(board):
        table.add_row(what, value, source)
    Console().print(table)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder (encoder.tflite and manifest.json).")],
    board: Annotated[
        str, typer.Option("--board", help="Board, as `epic board list` names it, or a profile FILE.toml.")
    ],
    as_json: Json = False,
) -> None:
    """Check whether a bundle fits a board: file, arena, operators, accelerator. Exit code 1 if it does not."""
    profile = load_board(board)
    found = check_bundle(bundle, profile)
    if as_json:
        report = {
            "board": board,
            "bundle": str(bundle),
            "fits": found.fits,
            "arena_bytes": found.arena_bytes,
            "arena_source": found.arena_source,
            "verdicts": [asdict(verdict) for verdict in found.verdicts],
            "accelerator": found.accelerator,
            "status": profile.status,
            "status_note": profile.status_note,
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        _print_check(found, profile, bundle)
    if found.fits is False:
        raise typer.Exit(1)


def _print_check(found: Assessment, board: Board, bundle: Path) -> None:
    table = Table("question", "answer", "", title=f"{bundle} on {board.title}")
    for verdict in found.verdicts:
        answer = {True: "fits", False: "DOES NOT FIT", None: "not known"}[verdict.fits]
        table.add_row(
            verdict.question, answer, f"{verdict.said}; {verdict.advice}" if verdict.advice else verdict.said
        )
    Console().print(table)
    typer.echo(f"Status of this board: {board.status}; {board.status_note}.")
    if found.fits is None:
        typer.echo("Not everything could be checked here; what was fits.")


def _rows(board: Board) -> list[tuple[str, str, str]]:
    rows = [
        ("processor", board.processor, ""),
        ("runtime", board.runtime, ""),
        ("status", board.status, board.status_note),
    ]
    figures = {
        "memory": board.memory,
        "flash": board.flash,
        "arena limit": board.arena_limit,
        "model limit": board.model_limit,
    }
    for what, figure in figures.items():
        note = f" ({figure.note})" if figure.note else ""
        rows.append((what, format_size(figure.size), f"{figure.source}{note}"))
    if board.firmware is not None:
        least = f"{board.firmware.name} {board.firmware.minimum} or later"
        rows.append(("firmware", least, board.firmware.source))
    if board.heap is not None:
        rows.append(("heap", " + ".join(map(format_size, board.heap.blocks)), board.heap.source))
    if board.inference is not None:
        rows.append(("inference", f"{board.inference.seconds:g} s (epic-small-128)", board.inference.source))
    if board.ports is not None:
        rows += [(f"uart:{name}", pins, board.ports.source) for name, pins in board.ports.uarts.items()]
        rows += [
            (f"uart:{name}", f"no: {why}", board.ports.source) for name, why in board.ports.refused.items()
        ]
        rows.append(("usb:1", "second USB serial port" if board.ports.usb else "no", board.ports.source))
    rows.append(("operators", ", ".join(board.operators.names), board.operators.source))
    if board.kernels is not None:
        rows.append(("kernels", board.kernels.name, board.kernels.source))
    if board.compiler is not None:
        command = " ".join((board.compiler.name, *board.compiler.options))
        rows.append(("compiler", command, board.compiler.source))
    if board.speed is not None:
        for what, measured, unit in (
            ("MobileNet v1", board.speed.network, "ms in int8 on one core"),
            ("7-zip", board.speed.code, "MIPS on one core"),
            ("power", board.speed.power, "W of a busy core above idle"),
        ):
            rows.append((what, f"{measured.value:g} {unit}", measured.said))
    rows.append(("links", ", ".join(board.links.kinds), board.links.source))
    rows.append(("installed by", board.served_by, ""))
    rows.append((f"install ({board.install.method})", board.install.how, board.install.source))
    rows += [(f"USB {usb.id}", usb.when, usb.source) for usb in board.usb]
    return rows
