"""``epic central init``: a centre and its devices with keys, ready to start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from central.setup import CONFIG, init_centre
from models.released import DEFAULT_NAME, find_release


def init(
    folder: Annotated[Path, typer.Argument(help="Where keys/, central.toml and device-N/ are made.")] = Path(
        "."
    ),
    devices: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of devices; by default the model's.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ] = DEFAULT_NAME,
    address: Annotated[
        str, typer.Option(help="Host name or IP address at which devices reach the centre.")
    ] = "127.0.0.1",
) -> None:
    """Make keys, central.toml and one node.toml a device; every device is allowed."""
    for path in init_centre(folder, find_release(model), devices, address):
        typer.echo(path)
    where = "" if folder == Path(".") else f" --config {folder / CONFIG}"
    typer.echo(f"start the centre with: epic central run{where}")
    typer.echo("copy each device-N folder to its device, then: python -m firmware_py run --config node.toml")
