"""``epic central rate``: how many bytes devices' latents have, set while they are at work."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from central.config import load_config
from central.fleet.device_views import NEVER_SEEN, DeviceView, devices
from central.fleet.rate_setting import RateSettingError, find_device, set_rate
from central.fleet.rates import ALL, Key, keep_rate, rate_of, rates
from central.options import ConfigOption, JsonOption


def rate(
    config: ConfigOption,
    latent_bytes: Annotated[
        int | None, typer.Argument(min=1, max=0xFFFF, help="Bytes a latent, one of the model's rates.")
    ] = None,
    device: Annotated[
        int | None, typer.Option(min=0, max=0xFFFF, help="Only this device. Default: all.")
    ] = None,
    survey: Annotated[
        int | None, typer.Option(min=0, max=0xFFFF, help="Survey of --device, if it is in several.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the setting; devices return to their own rate.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set the bytes per latent of one device or all; without a number, show the rates set and in use."""
    settings = load_config(config)
    if latent_bytes is not None and clear:
        raise RateSettingError("rate: give either a number of bytes or --clear")
    if survey is not None and device is None:
        raise RateSettingError("rate: --survey says whose --device is meant; give that as well")
    data_dir = settings.central.data_dir
    key = ALL if device is None else find_device(devices(data_dir), device, survey)
    if clear:
        keep_rate(data_dir, key, None)
    elif latent_bytes is not None:
        set_rate(settings, key, latent_bytes)
    _show(key, rates(data_dir), [view for view in devices(data_dir) if view.state != NEVER_SEEN], as_json)


def _show(key: Key, found: dict[Key, int], views: list[DeviceView], as_json: bool) -> None:
    """Show the rates set and in use, of all devices or of ``key``."""
    views = [view for view in views if key in (ALL, (view.survey, view.device))]
    if as_json:
        rows = [
            {"survey": v.survey, "device": v.device, "set": v.set_bytes, "in_force": v.latent_bytes}
            for v in views
        ]
        typer.echo(json.dumps({"all": found.get(ALL), "devices": rows}))
        return
    if key == ALL:
        typer.echo(f"all devices: {_set_to(found.get(ALL))}")
    in_force = {(view.survey, view.device): view.latent_bytes for view in views}
    for survey, device in sorted(in_force.keys() | {one for one in found if key in (ALL, one)} - {ALL}):
        made = in_force.get((survey, device))
        now = "not confirmed yet" if made is None else f"makes {made} bytes a latent"
        typer.echo(f"survey {survey}, device {device}: {_set_to(rate_of(found, (survey, device)))}; {now}")


def _set_to(latent_bytes: int | None) -> str:
    return "left to the device" if latent_bytes is None else f"set to {latent_bytes} bytes a latent"
