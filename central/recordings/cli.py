"""``epic central fetch`` and ``epic central gather``: recordings on request."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from central.config import CentralConfig, load_config
from central.fleet.device_views import devices
from central.options import ConfigOption, EventArgument, JsonOption, SurveyOption
from central.recordings.store import DAY_US, KEPT, OPEN, RecordingError, RecordingStore, Request
from central.storage.database import is_claimed
from central.table import print_lines, print_table
from central.times import utc
from firmware_py.protocol.recording_messages import MAX_MISFIT_PPM
from firmware_py.runtime.log import now_us

MAX_EVENT = 0xFFFFFFFF
PERCENT_PPM = 10_000
LOOK_S = 0.5
MAX_SHOWN = 50


def fetch(
    config: ConfigOption,
    event: Annotated[
        int | None,
        typer.Argument(
            min=0,
            max=MAX_EVENT,
            help=f"Number of the event; without it, the newest {MAX_SHOWN} requests are listed, all with --json.",
        ),
    ] = None,
    device: Annotated[
        list[int] | None, typer.Option(min=0, max=0xFFFF, help="Only this device; repeat for more.")
    ] = None,
    misfit: Annotated[
        float,
        typer.Option(min=0.0, max=99.0, help="Allowed RMS misfit in percent; 0 is lossless."),
    ] = 0.0,
    wait: Annotated[
        float | None, typer.Option(min=0.0, help="Wait this many seconds for the recordings.")
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete the requests and what has arrived of them.")
    ] = False,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an event's devices for their recordings; a running centre fetches them after the latents.

    Exit 1: with --wait, a recording is not kept at the end, or its request was deleted meanwhile.
    """
    settings = load_config(config)
    data_dir = settings.central.data_dir
    with closing(RecordingStore(data_dir)) as store:
        if event is None:
            if drop or device or wait is not None:
                raise RecordingError("fetch: --device, --wait and --drop need the number of an event")
            requests = store.requests(survey)
            shown = requests if as_json else requests[-MAX_SHOWN:]
            _print(shown, settings, store, as_json)
            if len(shown) < len(requests):
                typer.echo(f"{len(requests) - len(shown)} older requests are left out; --json lists all")
            return
        if drop:
            known = {request.survey for request in store.requests(survey, event)}
            if len(known) > 1:
                raise RecordingError(f"event {event}: in surveys {sorted(known)}; name one with --survey")
            dropped = sum(store.drop(event, one, device or ()) for one in known)
            typer.echo(
                json.dumps({"dropped": dropped}) if as_json else f"event {event}: {dropped} requests dropped"
            )
            return
        misfit_ppm = min(round(misfit * PERCENT_PPM), MAX_MISFIT_PPM)
        asked = store.ask(event, survey, device or (), misfit_ppm=misfit_ppm)
        found = asked if wait is None else _wait_for(store, asked, wait)
        _print(found, settings, store, as_json)
        if not as_json and not is_claimed(data_dir):
            typer.echo("no centre is running on this folder; start it with: epic central run", err=True)
    if deleted := sorted({one.device for one in asked} - {one.device for one in found}):
        typer.echo(
            f"event {event}: the requests to devices {', '.join(map(str, deleted))} were deleted meanwhile, by --drop "
            "or by [retention]; ask again, or raise max_recordings_mib",
            err=True,
        )
    if wait is not None and (deleted or any(request.state != KEPT for request in found)):
        raise typer.Exit(1)


def _wait_for(store: RecordingStore, asked: list[Request], wait_s: float) -> list[Request]:
    """Return the requests once all are closed, or after ``wait_s``; those that were deleted meanwhile are left out."""
    deadline_s = time.monotonic() + wait_s
    keys = {request.key for request in asked}
    while True:
        asked = [r for r in store.requests(asked[0].survey, asked[0].event) if r.key in keys]
        if time.monotonic() >= deadline_s or not any(request.state in OPEN for request in asked):
            return asked
        time.sleep(LOOK_S)


def _row(request: Request) -> dict[str, Any]:
    return {**asdict(request), "sha256": request.sha256.hex()}


def _print(requests: list[Request], settings: CentralConfig, store: RecordingStore, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_row(request) for request in requests]))
        return
    if not requests:
        typer.echo("no recording is asked for; ask with: epic central fetch EVENT")
    else:
        columns = ("survey", "event", "device", "state", "bytes", "asked (UTC)", "by", "on the link")
        print_table(columns, [_cells(one) for one in requests], least=5)
        print_lines(
            [
                f"event {one.event}, device {one.device} of survey {one.survey}: {one.reason}"
                for one in requests
                if one.reason
            ]
        )
    used = store.used_bytes(now_us() // DAY_US)
    section = settings.fetch
    hours = (
        "all day" if len(set(section.hours_utc)) == 1 else "from {} to {} h UTC".format(*section.hours_utc)
    )
    most = max(used.values(), default=0)
    kept_mib = settings.retention.max_recordings_mib
    typer.echo(
        f"budget a device and day: {section.bytes_per_day} bytes, {hours}; today at most {most} used. Kept: "
        + (f"the newest {kept_mib} MiB" if kept_mib else "as long as their event")
    )
    surveys = {request.survey for request in requests}
    still = [
        f"device {view.device} of survey {view.survey} has {view.kept_recordings}"
        for view in devices(settings.central.data_dir)
        if view.kept_recordings is not None and (view.survey in surveys or not surveys)
    ]
    if still:
        more = f", and {len(still) - MAX_SHOWN} more devices" * (len(still) > MAX_SHOWN)
        typer.echo(f"recordings on the devices: {', '.join(still[:MAX_SHOWN])}{more}")


def _cells(one: Request) -> tuple[object, ...]:
    # A device says how long its part is in its first answer.
    part = f" of {one.part_bytes}" * (one.state in OPEN and one.part_bytes > 0)
    asked = f"{utc(one.asked_us):%Y-%m-%d %H:%M:%S}"
    return (
        *(one.survey, one.event, one.device, one.state, f"{one.stored_bytes}{part}", asked),
        *(one.asked_by, one.wire_bytes),
    )


def gather(
    event: EventArgument,
    config: ConfigOption,
    out: Annotated[
        Path,
        typer.Option(help="File to write: .npy, .sgy, .mseed, or .png beside the modelled gather."),
    ],
    survey: SurveyOption = None,
) -> None:
    """Write an event's fetched gather to a file, with its provenance in FILE.json."""
    from central.recordings.export import export_gather
    from central.recordings.gathers import assemble

    settings = load_config(config)
    fetched = assemble(settings.central.data_dir, event, survey)
    export_gather(fetched, out, settings.export_line())
    missing = fetched.provenance["missing_devices"]
    absent = f"; without devices {', '.join(map(str, missing))}" if missing else ""
    typer.echo(f"event {event} in {out}{absent}")
