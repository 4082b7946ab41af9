"""``epic central``: run the centre, look at what it has, take maps out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from central.config import ConfigError, load_config
from central.dashboard.cli import page
from central.errors import CentralError
from central.export.formats import FORMATS, export_map, format_of
from central.fleet.devices_cli import app as devices_app
from central.fleet.rates_cli import rate
from central.gateway.cli import gateway
from central.learning.adapt_cli import app as adapt_app
from central.options import ConfigOption, EventArgument, JsonOption, SurveyOption
from central.recordings.cli import fetch, gather
from central.setup_cli import init
from central.storage.backup_cli import backup, restore_backup
from central.storage.map_store import DamagedMapError, Store, StoredMap
from central.table import print_lines, print_table
from central.times import check_clock, utc
from central.updates.rollout_cli import rollout
from central.verification.check_cli import check
from central.verification.refine_cli import refine

SINCE_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
MAX_DAMAGED_SHOWN = 10
# Entries of a list that `show` prints; longer ones are counted.
MAX_LISTED = 8

app = typer.Typer(help="The central node: receive latents, predict maps.", no_args_is_help=True)


class DecoderLoadError(CentralError, RuntimeError):
    """A decoder could not be loaded (``models.inversion.decoder`` is imported only when the centre runs)."""


app.command()(init)
app.add_typer(adapt_app, name="adapt")
app.command()(check)
app.command()(gateway)
app.add_typer(devices_app, name="devices")
app.command()(backup)
app.command(name="restore")(restore_backup)
app.command()(rollout)
app.command()(rate)
app.command()(page)
app.command()(refine)
app.command()(fetch)
app.command()(gather)


@app.command()
def run(
    config: ConfigOption,
    insecure: Annotated[bool, typer.Option("--insecure", help="Run without keys, on loopback only.")] = False,
) -> None:
    """Start the centre; Ctrl-C ends it once everything received is stored."""
    settings = load_config(config, insecure)
    check_clock()
    from central.pipeline.decoders import load_models
    from central.service import Service
    from firmware_py.runtime.log import Log
    from models.inversion.decoder import DecoderError

    try:
        log = Log(settings.central.log)
    except OSError:
        raise ConfigError(
            f"{config}: central.log: {settings.central.log} cannot be written; name a file in a writable folder"
        ) from None
    try:
        decoders = load_models(settings)
    except DecoderError as error:
        raise DecoderLoadError(str(error)) from None
    # A log on the terminal says the same.
    announce: Callable[[str], None] = typer.echo if settings.central.log else (lambda line: None)
    service = Service(settings, decoders, log, announce=announce)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, service.stop)
    if settings.central.log:
        typer.echo(f"listening on {service.receiver.endpoint}, log in {settings.central.log}; Ctrl-C ends it")
    try:
        service.run()
    finally:
        log.close()


def _summary(stored: StoredMap) -> dict:
    provenance = stored.provenance
    return {
        "survey": stored.survey,
        "event": stored.event,
        "revision": stored.revision,
        "partial": stored.partial,
        "devices": provenance["devices"],
        "model_hash": provenance["model_hash"],
        "sampled": utc(provenance["sample_time_us"]).isoformat(),
        "received_bytes": provenance["received_bytes"],
        "velocity_mean_mps": round(float(stored.velocity_mps.mean()), 1),
        "uncertainty_mean_mps": round(float(stored.uncertainty_mps.mean()), 1),
    }


@app.command(name="list")
def list_maps(
    config: ConfigOption,
    survey: SurveyOption = None,
    last: Annotated[
        int, typer.Option(min=0, help="Events to list, the most recently decoded; 0 for all.")
    ] = 50,
    since: Annotated[
        datetime | None, typer.Option(formats=SINCE_FORMATS, help="Only maps decoded since this time, UTC.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest map of each event in order of decoding.

    Exit 1: some maps are damaged; the others were listed.
    """
    store = Store(load_config(config).central.data_dir)
    since_us = 0 if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1e6)
    damaged: list[str] = []
    whole = _whole(store.recent(survey, last or -1, since_us), damaged)
    if as_json:
        # One row at a time: a store may hold more than fits in memory.
        typer.echo("[", nl=False)
        for number, stored in enumerate(whole):
            typer.echo((", " if number else "") + json.dumps(_summary(stored)), nl=False)
        typer.echo("]")
    else:
        _print_table(whole)
    for line in damaged:
        typer.echo(line, err=True)
    if damaged:
        raise typer.Exit(1)


def _whole(found: Iterable[StoredMap | DamagedMapError], damaged: list[str]) -> Iterator[StoredMap]:
    for stored in found:
        if isinstance(stored, StoredMap):
            yield stored
        elif len(damaged) < MAX_DAMAGED_SHOWN:
            damaged.append(str(stored))


def _print_table(found: Iterable[StoredMap]) -> None:
    rows = [
        (
            *(row["survey"], row["event"], row["revision"]),
            ",".join(map(str, row["devices"])) + " (partial)" * row["partial"],
            f"{row['velocity_mean_mps']:.0f}",
            f"{row['uncertainty_mean_mps']:.0f}",
            # Without seconds: a partial map's row must fit 80 columns.
            row["sampled"][:16].replace("T", " "),
        )
        for row in map(_summary, found)
    ]
    if not rows:
        typer.echo("no map yet")
        return
    print_table(("survey", "event", "rev", "devices", "m/s", "± m/s", "sampled (UTC)"), rows, least=4)


@app.command()
def show(
    event: EventArgument, config: ConfigOption, survey: SurveyOption = None, as_json: JsonOption = False
) -> None:
    """Show one event's newest map and its provenance."""
    stored = Store(load_config(config).central.data_dir).get(event, survey)
    content = {**_summary(stored), "provenance": stored.provenance}
    if as_json:
        typer.echo(json.dumps(content))
        return
    print_lines(_outline(content))


def _outline(content: dict[str, Any], indent: str = "") -> list[str]:
    """Return nested values, one line each; long lists and lists of lists are counted."""
    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_outline(value, indent + "  ")]
        elif isinstance(value, list) and (
            len(value) > MAX_LISTED or any(isinstance(one, list | dict) for one in value)
        ):
            lines.append(f"{indent}{name}: {len(value)} of them; --json has all")
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: {', '.join(map(str, value))}")
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines


@app.command()
def export(
    event: EventArgument,
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="File to write.")],
    kind: Annotated[
        str | None, typer.Option("--format", help=f"{' | '.join(FORMATS)}; default: by the suffix of --out.")
    ] = None,
    survey: SurveyOption = None,
) -> None:
    """Write one event's newest map to a file."""
    settings = load_config(config)
    stored = Store(settings.central.data_dir).get(event, survey)
    export_map(stored, format_of(out, kind), out, settings.export_line())
    typer.echo(f"event {event} in {out}")
