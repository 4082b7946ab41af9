"""``epic invert``: an archive of gathers, without devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from central.errors import CentralError
from central.options import JsonOption
from models.released import DEFAULT_NAME, find_release


class InvertCommandError(CentralError, RuntimeError):
    """Failure in a module that is imported only for an inversion."""


MAX_NOTES_SHOWN = 10

app = typer.Typer(help="Predict the maps of an archive of gathers, without devices.")


@app.command()
def invert(
    archive: Annotated[Path, typer.Argument(help="A .npy file of gathers, or a folder of such files.")],
    out: Annotated[Path, typer.Option(help="Folder of the maps; an interrupted run in it is continued.")],
    model: Annotated[
        str, typer.Option(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ] = DEFAULT_NAME,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler, tcp://HOST:PORT; its workers see the same paths.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict a map of every gather, as the model's devices and centre would."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from central.pipeline.invert import InvertError, invert_archive
    from models.inversion.decoder import DecoderError

    columns = (TextColumn("inverting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    notes: list[str] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("inverting", total=None)
        try:
            files = invert_archive(
                archive,
                find_release(model),
                out,
                scheduler,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                on_note=notes.append,
            )
        except (DecoderError, InvertError) as error:
            raise InvertCommandError(str(error)) from None
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in files], "notes": notes}))
    else:
        for note in notes[:MAX_NOTES_SHOWN]:
            typer.echo(f"note: {note}", err=True)
        if len(notes) > MAX_NOTES_SHOWN:
            typer.echo(f"note: {len(notes) - MAX_NOTES_SHOWN} more of these; --json lists them all", err=True)
        typer.echo(
            f"Velocity of {len(files)} file{'s' * (len(files) != 1)}, with its uncertainty, under {out}"
        )
