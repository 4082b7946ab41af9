"""``epic central refine``: a stored map moved until the waves through it say what was received."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from central.config import load_config
from central.options import ConfigOption, EventArgument, JsonOption, SurveyOption


class Prior(StrEnum):
    """Names of ``models.inversion.waveform.PRIORS``, without loading TensorFlow."""

    BLOCKY = "blocky"
    SMOOTH = "smooth"


def refine(
    event: EventArgument,
    config: ConfigOption,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Iterations; 20 by latents and 300 by a recording where not given."),
    ] = None,
    gather: Annotated[
        Path | None,
        typer.Option(
            help=".npy of the event's recording (sources, samples, receivers), in the place of latents."
        ),
    ] = None,
    prior: Annotated[
        Prior,
        typer.Option(help="With --gather: blocky (layers and faults) or smooth (changes without edges)."),
    ] = Prior.BLOCKY,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Waveform inversion from an event's predicted map; what it finds is the event's new revision."""
    iterations = iterations or (20 if gather is None else 300)
    settings = load_config(config)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from central.verification.refine import refine_event

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("refining", total=iterations)

        def on_iteration(done: int, misfit: float) -> None:
            bar.update(task, completed=done, description=f"misfit {misfit:.3f}")

        outcome = refine_event(
            settings.central.data_dir, settings.model, event, iterations, survey, gather, on_iteration, prior
        )
    refined = outcome.refined
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "event": event,
                    "survey": outcome.start.survey,
                    "of_revision": outcome.start.revision,
                    "revision": outcome.revision,
                    "overtaken": outcome.overtaken,
                    "iterations": refined.iterations,
                    "objective": refined.objective,
                    "misfit": refined.misfit,
                    "misfit_unit": refined.unit,
                    "elapsed_s": round(outcome.elapsed_s, 1),
                }
            )
        )
        return
    before, after = refined.misfit
    if outcome.overtaken:
        typer.echo(
            f"event {event}: nothing stored; a map of later latents than revision {outcome.start.revision} was drawn "
            "meanwhile: refine again, from that one"
        )
        return
    if outcome.revision is None:
        typer.echo(
            f"event {event}: nothing stored; no step from revision {outcome.start.revision} lowers the objective "
            f"(misfit {before:.3f} {refined.unit})"
        )
        return
    typer.echo(
        f"event {event}: revision {outcome.revision}, refined from revision {outcome.start.revision} in "
        f"{refined.iterations} iterations, {outcome.elapsed_s:.0f} s; misfit {before:.3f} to {after:.3f} {refined.unit}"
    )
