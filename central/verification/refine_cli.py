"""``epic central refine``: a stored map moved until the waves through it say what was received."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from central.config import load_config
from central.options import ConfigOption, EventArgument, JsonOption, SurveyOption
from central.verification.check_inputs import CheckInputError

if TYPE_CHECKING:
    import numpy as np

    from central.verification.refine import Outcome


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
    fetched: Annotated[
        bool,
        typer.Option("--fetched", help="Use the recordings that `epic central fetch` has fetched."),
    ] = False,
    prior: Annotated[
        Prior,
        typer.Option(help="With a recording: blocky (layers and faults) or smooth (changes without edges)."),
    ] = Prior.BLOCKY,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine an event's predicted map by waveform inversion; the result is the event's new revision."""
    if fetched and gather is not None:
        raise CheckInputError("refine: --gather and --fetched exclude each other; leave one out")
    iterations = iterations or (300 if fetched or gather is not None else 20)
    settings = load_config(config)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from central.verification.refine import refine_event

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("refining", total=iterations)

        def on_iteration(done: int, misfit: float, velocity_mps: np.ndarray) -> None:
            bar.update(task, completed=done, description=f"misfit {misfit:.3f}")

        outcome = refine_event(
            settings.central.data_dir,
            settings.model,
            event,
            iterations,
            survey,
            gather,
            on_iteration,
            prior,
            fetched,
        )
    typer.echo(json.dumps(_fields(event, outcome)) if as_json else _summary(event, outcome))


def _fields(event: int, outcome: Outcome) -> dict:
    refined = outcome.refined
    return {
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


def _summary(event: int, outcome: Outcome) -> str:
    refined, start = outcome.refined, outcome.start.revision
    before, after = refined.misfit
    if outcome.overtaken:
        return (
            f"event {event}: nothing stored; a map of later latents than revision {start} was stored meanwhile. "
            "Refine again, from that one"
        )
    if outcome.revision is None:
        return (
            f"event {event}: nothing stored; no step from revision {start} lowers the objective "
            f"(misfit {before:.3f} {refined.unit})"
        )
    return (
        f"event {event}: revision {outcome.revision}, refined from revision {start} in {refined.iterations} "
        f"iterations, {outcome.elapsed_s:.0f} s; misfit {before:.3f} to {after:.3f} {refined.unit}"
    )
