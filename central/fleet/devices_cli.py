"""``epic central devices``: what the centre knows of every device."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from central.config import load_config
from central.fleet.device_registry import forget_device
from central.fleet.device_views import LATE, NEVER_SEEN, ON_TIME, DeviceView, devices
from central.fleet.rate_setting import RateSettingError, find_device
from central.options import ConfigOption, JsonOption
from central.table import print_lines, print_table
from firmware_py.runtime.log import now_us

MAX_GAPS_SHOWN = 5
# Column of the state.
STATE = 2
# In the order of their importance: what a terminal has no room for is left to --json.
COLUMNS = (
    *("survey", "device", "state", "last seen", "lag", "records", "lost", "queue", "refused"),
    *("model", "acknowledged", "bytes in/out", "latent", "°C", "clock off"),
)


app = typer.Typer(invoke_without_command=True)


@app.callback()
def list_devices(
    context: typer.Context,
    config: ConfigOption,
    survey: Annotated[
        int | None, typer.Option(min=0, max=0xFFFF, help="List only devices of this survey.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the devices with last contact, lag, loss, bytes and model. No running centre is needed."""
    if context.invoked_subcommand:
        return
    at_us = now_us()
    found = devices(load_config(config).central.data_dir, at_us)
    views = [view for view in found if survey in (None, view.survey)]
    if as_json:
        typer.echo(json.dumps([asdict(view) for view in views]))
        return
    if not views:
        typer.echo("no device has reported yet")
        return
    colours = {ON_TIME: "green", LATE: "yellow", NEVER_SEEN: "dim"}
    print_table(
        COLUMNS,
        [_cells(view, at_us) for view in views],
        least=STATE + 1,
        styles=[colours.get(view.state, "red") for view in views],
        styled=STATE,
    )
    print_lines(
        [f"survey {view.survey}, device {view.device}: {line}" for view in views for line in _remarks(view)]
    )


@app.command()
def forget(
    device: Annotated[int, typer.Argument(min=0, max=0xFFFF, help="Number of the device.")],
    config: ConfigOption,
    survey: Annotated[
        int | None, typer.Option(min=0, max=0xFFFF, help="Its survey, if there are several.")
    ] = None,
) -> None:
    """Forget a device that is gone or was replaced; its records and maps stay."""
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
        view.state,
        _duration((at_us - view.last_seen_us) / 1e6) + " ago" if view.last_seen_us else "never",
        _duration(view.lag_s),
        str(view.records),
        str(view.loss),
        number(view.queue_depth),
        str(view.refused),
        view.model_hash or "-",
        "-" if view.boot is None else f"{view.boot}:{view.sequence}",
        f"{view.bytes_received}/{view.bytes_sent}",
        number(view.latent_bytes),
        number(view.temperature_c, ".1f"),
        _duration(view.clock_offset_s),
    ]


def _remarks(view: DeviceView) -> list[str]:
    lines = [
        f"gap in boot {gap.boot}: {gap.first} to {gap.last}, {gap.missing} missing"
        for gap in view.gaps[:MAX_GAPS_SHOWN]
    ]
    if more := view.n_gaps - MAX_GAPS_SHOWN:
        lines += [f"and {_count(more, 'more gap')}"] if more > 0 else []
    if view.acknowledged_lost:
        lines.append(
            f"{_count(view.acknowledged_lost, 'acknowledged record')} missing in the store: a file was removed, or an "
            "older backup restored"
        )
    if view.resent:
        lines.append(f"sent {_count(view.resent, 'record')} again that the store had lost")
    if view.not_kept:
        lines.append(f"no longer has {_count(view.not_kept, 'record')} that the store has lost")
    if view.dropped:
        lines.append(f"dropped {_count(view.dropped, 'record')} for lack of space")
    if view.rejected:
        lines.append(
            f"rejected {_count(view.rejected, 'recording')} since its start, last: {view.rejection or '-'}"
        )
    if view.last_error:
        lines.append(f"restarted after an error: {view.last_error}")
    if view.set_bytes not in (None, view.latent_bytes):
        made = (
            "the device has not reported its rate"
            if view.latent_bytes is None
            else f"it makes {view.latent_bytes}"
        )
        lines.append(f"set to latents of {view.set_bytes} bytes; {made}")
    if view.refused:
        lines.append(f"refused {_count(view.refused, 'time')}, last: {view.refusal}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.0f} ms"
