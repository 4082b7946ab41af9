"""``epic central check``: what the waves through stored maps say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from central.config import load_config
from central.options import ConfigOption, JsonOption, SurveyOption
from central.verification.check_inputs import CheckInputError


def check(
    config: ConfigOption,
    event: Annotated[
        int | None,
        typer.Argument(
            min=0, max=0xFFFFFFFF, help="Check this event's newest map; by default all unchecked maps."
        ),
    ] = None,
    gather: Annotated[
        Path | None,
        typer.Option(
            help=".npy of the event's recording (sources, samples, receivers), to compute its misfit too."
        ),
    ] = None,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check stored maps by physics: model and encode their gathers, and compare with the received latents.

    Exit 1: some maps could not be checked; the others were. Exit 2: no map could be checked.
    """
    settings = load_config(config)
    if gather is not None and event is None:
        raise CheckInputError("check: --gather is the recording of one event; give its number as well")
    from central.verification.check import Unchecked, check_events

    rows, failed = [], []
    for one in check_events(settings.central.data_dir, settings.model, event, survey, gather):
        stored = one.stored
        row: dict[str, Any] = {"event": stored.event, "survey": stored.survey, "revision": stored.revision}
        if isinstance(one, Unchecked):
            failed.append(
                f"event {stored.event}, revision {stored.revision}: cannot be checked; {one.reason}"
            )
            rows.append({**row, "latents": None, "gather": None, "reason": one.reason})
            continue
        found = None if one.gather is None else round(one.gather, 4)
        rows.append({**row, "latents": round(one.latents, 4), "gather": found, "reason": None})
        if not as_json:
            misfit = "" if one.gather is None else f"; recording {one.gather:.1%} off"
            typer.echo(
                f"event {stored.event}, revision {stored.revision}: latents {one.latents:.2f} standard "
                f"deviations off{misfit}"
            )
            if one.flag and one.flag[1]:
                typer.echo(f"event {stored.event} is flagged: {': '.join(one.flag)}")
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo("nothing to check: every event's newest map has been checked")
    else:
        if len(failed) < len(rows):
            typer.echo("0 agrees with the latents; about 1.4 is that of an unrelated gather")
        for line in failed:
            typer.echo(line, err=True)
    if failed:
        raise typer.Exit(1 if len(failed) < len(rows) else 2)
