"""``epic central devices``: what the centre knows of every device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from central.config import load_config
from central.fleet.device_registry import forget_device
from central.fleet.device_views import LATE, ON_TIME, DeviceView, devices
from central.fleet.rate_setting import RateSettingError, find_device
from central.options import ConfigOption, JsonOption
from firmware_py.protocol.printable import printable
from firmware_py.runtime.log import now_us

MAX_GAPS_SHOWN = 5
COLUMNS = (
    *("survey", "device", "state", "heard", "acknowledged", "lag", "records", "lost", "queue"),
    *("bytes in/out", "model", "latent", "°C", "clock off", "refused"),
)
# Wide enough for every column: a narrow terminal wraps lines, and nothing is cut.
WIDTH = 200


app = typer.Typer(invoke_without_command=True)


@app.callback()
def list_devices(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", help="central.toml")] = None,
    survey: Annotated[int | None, typer.Option(min=0, max=0xFFFF, help="Only this survey's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Every device: when it was last heard, lag, loss, bytes, model; while the centre runs and after."""
    if context.invoked_subcommand:
        return
    if config is None:
        raise typer.BadParameter("expected --config central.toml", context)
    at_us = now_us()
    found = devices(load_config(config).central.data_dir, at_us)
    views = [view for view in found if survey in (None, view.survey)]
    if as_json:
        typer.echo(json.dumps([asdict(view) for view in views]))
        return
    if not views:
        typer.echo("no device was heard yet")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    colours = {ON_TIME: "green", LATE: "yellow"}
    for view in views:
        colour = colours.get(view.state, "red")
        state, *cells = (Text(printable(cell)) for cell in (view.state, *_cells(view, at_us)))
        state.stylize(colour)
        table.add_row(*cells[:2], state, *cells[2:])
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(table)
    for view in views:
        for line in _remarks(view):
            console.print(Text(f"survey {view.survey}, device {view.device}: {printable(line)}"))


@app.command()
def forget(
    device: Annotated[int, typer.Argument(min=0, max=0xFFFF, help="Number of the device.")],
    config: ConfigOption,
    survey: Annotated[
        int | None, typer.Option(min=0, max=0xFFFF, help="Its survey, where there are several.")
    ] = None,
) -> None:
    """Remove what is known of a device that is gone or was replaced; its records and maps stay."""
    data_dir = load_config(config).central.data_dir
    key = find_device(devices(data_dir), device, survey)
    if not forget_device(data_dir, key):
        raise RateSettingError(f"device {device} of survey {key[0]}: unknown here; see epic central devices")
    typer.echo(f"device {device} of survey {key[0]} is forgotten")


def _cells(view: DeviceView, at_us: int) -> list[str]:
    def number(value: float | None, form: str = "") -> str:
        return "-" if value is None else format(value, form)

    return [
        str(view.survey),
        str(view.device),
        _duration((at_us - view.last_heard_us) / 1e6) + " ago",
        "-" if view.boot is None else f"{view.boot}:{view.sequence}",
        _duration(view.lag_s),
        str(view.records),
        str(view.loss),
        number(view.queue_depth),
        f"{view.bytes_received}/{view.bytes_sent}",
        view.model_hash or "-",
        number(view.latent_bytes),
        number(view.temperature_c, ".1f"),
        _duration(view.clock_offset_s),
        str(view.refused),
    ]


def _remarks(view: DeviceView) -> list[str]:
    lines = [
        f"gap in boot {gap.boot}: {gap.first} to {gap.last}, {gap.missing} missing"
        for gap in view.gaps[:MAX_GAPS_SHOWN]
    ]
    if more := view.n_gaps - MAX_GAPS_SHOWN:
        lines += [f"and {more} gaps more"] if more > 0 else []
    if view.acknowledged_lost:
        lines.append(
            f"has {view.acknowledged_lost} records acknowledged that are not in the store: it has lost them, as when "
            "a file was removed or an older backup restored"
        )
    if view.dropped:
        lines.append(f"says it dropped {view.dropped} records for want of room")
    if view.set_bytes not in (None, view.latent_bytes):
        made = "has not said what it makes" if view.latent_bytes is None else f"makes {view.latent_bytes}"
        lines.append(f"is set to latents of {view.set_bytes} bytes, {made}")
    if view.refused:
        lines.append(f"refused {view.refused} times, last: {view.refusal}")
    return lines


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.0f} ms"
