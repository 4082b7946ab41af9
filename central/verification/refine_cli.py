"""``epic central refine``: refine a stored map by waveform inversion, at once or by the queue."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import closing, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from central.config import CentralConfig, load_config
from central.options import ConfigOption, JsonOption, SurveyOption
from central.storage.database import StoreError
from central.storage.map_store import Store
from central.table import print_lines, print_table
from central.verification.check_inputs import CheckInputError

if TYPE_CHECKING:
    import numpy as np

    from central.verification.refine import Outcome
    from central.verification.refine_inputs import RefinementRequest
    from central.verification.refine_jobs import Job

MAX_EVENT = 0xFFFFFFFF


class Prior(StrEnum):
    """Names of ``models.inversion.waveform.PRIORS``, without loading TensorFlow."""

    BLOCKY = "blocky"
    SMOOTH = "smooth"


def refine(
    config: ConfigOption,
    event: Annotated[int | None, typer.Argument(min=0, max=MAX_EVENT, help="Number of the event.")] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Iterations. Default: 20 by latents, 500 by a recording."),
    ] = None,
    gather: Annotated[
        Path | None,
        typer.Option(
            help=".npy of the event's recording (sources, samples, receivers), used in place of latents."
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
    queue: Annotated[bool, typer.Option("--queue", help="Add the job to the queue and return.")] = False,
    work: Annotated[
        bool, typer.Option("--work", help="Run the queue's jobs, and wait for more; Ctrl-C ends it.")
    ] = False,
    drain: Annotated[bool, typer.Option("--drain", help="With --work: end when the queue is empty.")] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(help="With --work: Dask scheduler, tcp://HOST:PORT; its workers see the same paths."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="List the queue's jobs.")] = False,
    cancel: Annotated[
        int | None, typer.Option(min=1, metavar="JOB", help="Cancel a waiting or running job.")
    ] = None,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine an event's predicted map by waveform inversion; the result is the event's new revision.

    --queue, --work, --status and --cancel are about jobs in the background.
    """
    if (event is not None) + work + status + (cancel is not None) != 1:
        raise CheckInputError("refine: expected one of EVENT, --work, --status and --cancel JOB")
    if (drain or scheduler) and not work:
        raise CheckInputError("refine: --drain and --scheduler are for --work; add it")
    if fetched and gather is not None:
        raise CheckInputError("refine: --gather and --fetched exclude each other; leave one out")
    settings = load_config(config)
    if event is None:
        if queue:
            raise CheckInputError("refine: --queue needs the number of an event")
        if work:
            _work(settings, scheduler, drain)
        elif status:
            _print_status(settings.central.data_dir, as_json)
        else:
            assert cancel is not None
            _cancel(settings.central.data_dir, cancel, as_json)
        return
    from central.verification.refine_inputs import FETCHED, GATHER, LATENTS, RefinementRequest

    source = FETCHED if fetched else GATHER if gather is not None else LATENTS
    iterations = iterations or (20 if source == LATENTS else 500)
    request = RefinementRequest(event, survey, iterations, source, gather, prior.value)
    if queue:
        _queue(settings, request, as_json)
    else:
        outcome = _refine(settings, request)
        typer.echo(json.dumps(_fields(event, outcome)) if as_json else _summary(event, outcome))


def _refine(settings: CentralConfig, request: RefinementRequest) -> Outcome:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from central.verification.refine import refine_event

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("refining", total=request.iterations)

        def on_iteration(done: int, misfit: float, velocity_mps: np.ndarray) -> None:
            bar.update(task, completed=done, description=f"misfit {misfit:.3f}")

        return refine_event(settings.central.data_dir, settings.model, request, on_iteration)


def _queue(settings: CentralConfig, request: RefinementRequest, as_json: bool) -> None:
    from central.verification.refine_inputs import read_inputs
    from central.verification.refine_jobs import JobQueue

    data_dir = settings.central.data_dir
    # Report missing inputs now: the queue may run at night.
    inputs = read_inputs(data_dir, settings.model, request)
    with closing(JobQueue(data_dir)) as jobs:
        number = jobs.add(inputs)
    typer.echo(
        json.dumps({"job": number})
        if as_json
        else f"job {number}: event {request.event}, {request.iterations} iterations, by {_SOURCES[request.source]}"
        f"{'' if _has_worker(data_dir) else NO_WORKER}"
    )


def _work(settings: CentralConfig, scheduler: str | None, drain: bool) -> None:
    from central.verification.refine_worker import work
    from firmware_py.runtime.log import Log

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    work(settings.central.data_dir, settings.model, Log(None), scheduler, drain)


def _print_status(data_dir: Path, as_json: bool) -> None:
    from central.verification.refine_jobs import WAITING, JobQueue

    with closing(JobQueue(data_dir)) as queue, closing(Store(data_dir)) as store:
        jobs = queue.jobs()
        rows = [_progress(data_dir, store, job) for job in jobs]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not jobs:
        typer.echo("no job yet; add one with: epic central refine EVENT --queue")
        return
    cells = []
    for row in rows:
        done = "" if row["done"] is None else f"{row['done']} of "
        misfit = "" if row["misfit"] is None else f"{row['misfit']:.3f}"
        revision = "" if row["revision"] is None else row["revision"]
        cells.append(
            (
                row["job"],
                row["event"],
                row["source"],
                row["state"],
                f"{done}{row['iterations']}",
                misfit,
                revision,
            )
        )
    print_table(("job", "event", "by", "state", "iterations", "misfit", "revision"), cells, least=4)
    print_lines([f"job {row['job']}: {row['reason']}" for row in rows if row["reason"]])
    if any(job.state == WAITING for job in jobs) and not _has_worker(data_dir):
        typer.echo(NO_WORKER.removeprefix("; "))


def _progress(data_dir: Path, store: Store, job: Job) -> dict[str, Any]:
    """Return the job for JSON; ``done`` and ``misfit`` are those of its map, else of the latest checkpoint."""
    from central.verification.refine_jobs import job_folder, read_checkpoint

    row = {"job" if name == "number" else name: value for name, value in job.to_dict().items()}
    checkpoint = read_checkpoint(job_folder(data_dir, job.number))
    progress = (checkpoint.done, checkpoint.misfit) if checkpoint else (None, None)
    if job.revision is not None:
        progress = _outcome(store, job) or progress
    return {**row, "done": progress[0], "misfit": progress[1]}


def _outcome(store: Store, job: Job) -> tuple[int, float] | None:
    """Return the iterations and the last misfit of a finished job's map; None if retention has removed it."""
    with suppress(StoreError):
        for stored in store.revisions(job.event, job.survey):
            if stored.revision == job.revision:
                refined = stored.provenance["refinement"]
                return refined["iterations"], refined["misfit"][-1]
    return None


def _cancel(data_dir: Path, number: int, as_json: bool) -> None:
    from central.verification.refine_jobs import JobQueue

    with closing(JobQueue(data_dir)) as queue:
        queue.cancel(number)
    typer.echo(json.dumps({"cancelled": number}) if as_json else f"job {number}: cancelled")


def _has_worker(data_dir: Path) -> bool:
    from central.storage.database import is_claimed
    from central.verification.refine_jobs import LOCK_NAME

    return is_claimed(data_dir, LOCK_NAME)


_SOURCES = {"latents": "its latents", "gather": "the given recording", "fetched": "the fetched recording"}
NO_WORKER = "; no worker runs, start one with: epic central refine --work"


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
