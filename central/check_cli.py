"""``epic central check``: what the waves through stored maps say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from central.config import load_config
from central.evidence import EvidenceError
from central.options import ConfigOption, JsonOption, SurveyOption

ERRORS: tuple[type[Exception], ...] = (EvidenceError,)


def check(
    config: ConfigOption,
    event: Annotated[
        int | None,
        typer.Argument(min=0, max=0xFFFFFFFF, help="Its newest map; without it, all that were not checked."),
    ] = None,
    gather: Annotated[
        Path | None,
        typer.Option(help=".npy of the event's recording (sources, samples, receivers): its misfit as well."),
    ] = None,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Model stored maps, encode the waves as devices would, and tell how far that is from what came."""
    settings = load_config(config)
    if gather is not None and event is None:
        raise EvidenceError("check: --gather is the recording of one event; give its number as well")
    from central.check import check_events

    rows = []
    for checked in check_events(settings.central.data_dir, settings.model, event, survey, gather):
        stored = checked.stored
        rows.append(
            {
                "event": stored.event,
                "survey": stored.survey,
                "revision": stored.revision,
                "latents": round(checked.latents, 4),
                "gather": None if checked.gather is None else round(checked.gather, 4),
            }
        )
        if not as_json:
            misfit = "" if checked.gather is None else f"; recording {checked.gather:.1%} off"
            typer.echo(
                f"event {stored.event}, revision {stored.revision}: latents {checked.latents:.2f} standard "
                f"deviations off{misfit}"
            )
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo("nothing to check: every newest map was checked before")
    else:
        typer.echo("0 agrees with what came; about 1.4 is an unrelated gather's")
