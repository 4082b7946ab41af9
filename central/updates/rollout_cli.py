"""``epic central rollout``: a new model for the devices, and how far it has got."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from central.config import load_config
from central.options import ConfigOption, JsonOption
from central.table import print_lines, print_table
from central.times import utc
from central.updates.rollout_store import (
    ALL,
    CANARY,
    DOWNLOADING,
    OFFERED,
    STOPPED,
    RolloutError,
    RolloutStore,
    StoredRollout,
    check_release,
)
from central.updates.signing import SECRET_NAME, read_signing_key
from firmware_py.protocol.printable import printable
from models.released import find_release


def rollout(
    config: ConfigOption,
    release: Annotated[
        str | None, typer.Argument(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ] = None,
    canary: Annotated[
        int, typer.Option(min=0, help="Devices in the first stage; the others follow when these deliver.")
    ] = 1,
    key: Annotated[
        Path | None, typer.Option(help=f"Secret signing key; by default {SECRET_NAME} in the key folder.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version number, above all before; by default the next.")
    ] = None,
    board: Annotated[
        list[str] | None, typer.Option(help="Only for devices on this board; repeat for more.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a rollout that is still in progress.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show the state of the rollouts.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the rollout: offer it to no further device.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a model and offer it to the devices; a running centre takes it up within seconds."""
    settings = load_config(config)
    central = settings.central
    if sum((release is not None, status, stop)) != 1:
        raise RolloutError("rollout: expected either a model, or --status, or --stop")
    if release is None:
        store = RolloutStore(central.data_dir)
        try:
            if stop:
                _stop(store)
            _show(store.rollouts(), as_json)
        finally:
            store.close()
        return
    if key is None and central.keys is None:
        raise RolloutError(
            f"{config}: central.keys: missing; make a signing key with `epic keys new --signing` and give it "
            "with --key"
        )
    secret = read_signing_key(key or (central.keys or Path()) / SECRET_NAME)
    folder = find_release(release)
    check_release(folder, settings.model)
    store = RolloutStore(central.data_dir, create=True)
    try:
        if not replace:
            check_none_running(store)
        made = store.create(folder, secret, version, canary, board or ())
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps({"version": made}))
        return
    typer.echo(
        f"version {made}: {_first_stage(canary)}; follow it with: epic central rollout --status --config {config}"
    )


def _first_stage(canaries: int) -> str:
    if not canaries:
        return "all devices at once"
    return f"{canaries} devices first" if canaries > 1 else "one device first"


def check_none_running(store: RolloutStore) -> None:
    """Raise ``RolloutError`` if the newest rollout still waits for canaries, downloads or its first device."""
    newest = next(iter(store.rollouts()), None)
    if not newest or newest.stage not in (CANARY, ALL):
        return
    waiting = [key for key, device in newest.devices.items() if device.state in (OFFERED, DOWNLOADING)]
    if newest.stage == CANARY or waiting or not newest.devices:
        raise RolloutError(
            f"rollout: version {newest.version} ({newest.name}) is still in progress; wait for it (--status), end it "
            "with --stop, or give --replace"
        )


def _stop(store: RolloutStore) -> None:
    newest = store.newest()
    if not newest or newest[1] not in (CANARY, ALL):
        raise RolloutError("rollout: none is in progress; see epic central rollout --status")
    store.set_stage(newest[0], STOPPED, "by the operator")


def _summary(stored: StoredRollout) -> dict[str, Any]:
    return {
        "version": stored.version,
        "name": stored.name,
        "model_hash": stored.model_hash.hex(),
        "created": _time(stored.created_us),
        "canaries": stored.canaries,
        "stage": stored.stage,
        "reason": stored.reason,
        "devices": [
            {
                "survey": survey,
                "device": device,
                "state": state.state,
                "reason": state.reason,
                "bytes": state.bytes,
                "changed": _time(state.changed_us),
            }
            for (survey, device), state in sorted(stored.devices.items())
        ],
    }


def _time(us: int) -> str:
    return utc(us).isoformat(timespec="seconds")


def _show(rollouts: list[StoredRollout], as_json: bool) -> None:
    rows = [_summary(stored) for stored in rollouts]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("nothing was rolled out yet")
        return
    newest = rows[0]
    typer.echo(
        f"version {newest['version']}, {printable(newest['name'])} {newest['model_hash']}: {newest['stage']}"
    )
    if newest["reason"]:
        typer.echo(printable(newest["reason"]))
    if newest["stage"] == CANARY:
        typer.echo(
            f"the other devices wait until {newest['canaries']} of them {'run' if newest['canaries'] > 1 else 'runs'} "
            "it and the centre has a record of it from each"
        )
    if not newest["devices"] and newest["stage"] in (CANARY, ALL):
        typer.echo(
            "no device has asked for it yet: those with [update] in node.toml ask at their start and with each health "
            "record; without it a device takes no updates"
        )
        return
    names = ("survey", "device", "state", "bytes", "changed")
    cells = [[row[name] for name in names[:-1]] + [row["changed"][:19]] for row in newest["devices"]]
    print_table((*names[:-1], "since (UTC)"), cells)
    print_lines(
        [
            f"device {row['device']} of survey {row['survey']}: {row['reason']}"
            for row in newest["devices"]
            if row["reason"]
        ]
    )
    if rows[1:]:
        typer.echo("before: " + ", ".join(f"version {row['version']} ({row['stage']})" for row in rows[1:]))
