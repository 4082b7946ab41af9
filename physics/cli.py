"""``epic data``: make and look at data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from physics.acquisition import Acquisition, AcquisitionError
from physics.dataset import DatasetError, generate_dataset
from physics.families import FAMILIES, UnknownFamilyError, check_family
from physics.modelling import ModellingError
from physics.openfwi_files import OpenFWIFileError

ERRORS: tuple[type[Exception], ...] = (
    AcquisitionError,
    DatasetError,
    UnknownFamilyError,
    OpenFWIFileError,
    ModellingError,
)

app = typer.Typer(help="Make and look at data sets in OpenFWI's layout.", no_args_is_help=True)


@app.command()
def generate(
    families: Annotated[list[str], typer.Argument(help="Families by name, or 'all'.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set; an interrupted run in it goes on.")],
    count: Annotated[int, typer.Option(help="Samples of each family.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data set.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first sample of the seed's sequence.")] = 0,
    engine: Annotated[
        str, typer.Option(help="openfwi (the benchmark's own scheme) or deepwave (faster).")
    ] = "openfwi",
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw velocity maps and model their gathers; writes OpenFWI files and a manifest."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    names = list(FAMILIES) if families == ["all"] else [check_family(name) for name in families]
    columns = (TextColumn("modelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("modelling", total=count * len(names))
        files = generate_dataset(
            names,
            count,
            seed,
            engine,
            out,
            Acquisition.openfwi(),
            workers=workers or os.cpu_count() or 1,
            first=first,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in files], "samples": count * len(names)}))
    else:
        typer.echo(f"{count * len(names)} samples in {len(files)} files under {out}")


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    seed: int = 0,
    columns: int = 8,
) -> None:
    """Draw maps of all ten families on one sheet, to be looked at."""
    from physics.sheet import draw_sheet

    draw_sheet(out, seed, columns, Acquisition.openfwi())
    typer.echo(f"{len(FAMILIES) * columns} maps in {out}")
