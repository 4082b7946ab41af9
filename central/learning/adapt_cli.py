"""``epic central adapt``: adapt the decoder to the survey; list, use and roll back its versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from central.config import load_config
from central.learning.versions import RELEASED, list_versions, read_in_use, roll_back, use_version
from central.options import ConfigOption, JsonOption, SurveyOption
from central.times import utc

app = typer.Typer(invoke_without_command=True)


class Engine(StrEnum):
    """Names of ``physics.modelling.ENGINES``, without loading it."""

    OPENFWI = "openfwi"
    CUDA = "cuda"


@app.callback()
def adapt(
    context: typer.Context,
    config: ConfigOption,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of prediction and training.")] = 3,
    minutes: Annotated[
        float, typer.Option(min=0.001, help="Training minutes of each round, without modelling.")
    ] = 10.0,
    original: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of the original families' samples; repeat for more. Default: samples are drawn and modelled."
        ),
    ] = None,
    originals: Annotated[
        int | None,
        typer.Option(min=10, help="Samples of the original families. Default: all of --original, else 500."),
    ] = None,
    tests: Annotated[int, typer.Option(min=64, help="Drawn test samples of the gate.")] = 100,
    events: Annotated[
        int, typer.Option(min=10, help="Events to learn from, the most recently decoded.")
    ] = 1000,
    engine: Annotated[Engine, typer.Option(help="Engine that models the training gathers.")] = Engine.OPENFWI,
    batch: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(min=1e-7, help="Peak learning rate.")] = 5e-4,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to the backend.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    survey: SurveyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adapt the decoder to the survey by forward modelling from the received latents. Devices keep their encoder.

    The same command continues an interrupted adaptation. A decoder that passes the gate becomes a version, which `use`
    puts in use.
    """
    if context.invoked_subcommand:
        return
    loaded = load_config(config)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from central.learning.adapt import Settings
    from central.learning.adapt import adapt as run_adaptation
    from models.cli import limit_threads

    limit_threads(threads)
    settings = Settings(
        rounds,
        minutes,
        events,
        engine.value,
        tuple(original or ()),
        originals,
        tests,
        batch,
        learning_rate,
        seed,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading events", total=1.0)

        def on_progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        found = run_adaptation(loaded.central.data_dir, loaded.model, settings, survey, on_progress)
    number = found.version.number
    if as_json:
        figures = {"before": asdict(found.before), "rounds": [asdict(one) for one in found.rounds]}
        typer.echo(json.dumps({"version": number, "round": found.chosen, **figures}))
        return
    after = found.rounds[found.chosen - 1]
    misfit = ""
    if found.before.misfit is not None and after.misfit is not None:
        misfit = f"; their recordings {found.before.misfit:.1%} to {after.misfit:.1%} off"
    typer.echo(
        f"version {number}, round {found.chosen}: latents of held-back events {found.before.distance:.3f} to "
        f"{after.distance:.3f} standard deviations off{misfit}; error on the drawn test set "
        f"{found.before.test_mae:.4f} to {after.test_mae:.4f}\n"
        f"put it to work with: epic central adapt use {number}"
    )


@app.command(name="list")
def list_adapted(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List the adapted decoders, oldest first, and the one in use."""
    data_dir = load_config(config).central.data_dir
    in_use = read_in_use(data_dir)
    found = list_versions(data_dir)
    rows = [
        {**one.record, "in_use": in_use.get(one.released_sha256, RELEASED) == one.number} for one in found
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("no adapted decoder yet")
    for row in rows:
        before, after = row["figures"]["before"], row["figures"]["rounds"][row["rounds"] - 1]
        typer.echo(
            f"{row['version']}{' (in use)' if row['in_use'] else ''}: {utc(row['created_us']):%Y-%m-%d %H:%M}, from "
            f"{row['parent_version'] or 'the release'}, {row['events']} events ({row['recordings']} by recording), "
            f"latents {before['distance']:.3f} to {after['distance']:.3f}, test {before['test_mae']:.4f} to "
            f"{after['test_mae']:.4f}"
        )


@app.command()
def use(
    number: Annotated[int, typer.Argument(min=1, help="Version to use; `list` shows all.")],
    config: ConfigOption,
) -> None:
    """Decode with this version from now on; a running centre switches within seconds."""
    use_version(load_config(config).central.data_dir, number)
    typer.echo(f"version {number} is in use; back with: epic central adapt rollback")


@app.command()
def rollback(config: ConfigOption) -> None:
    """Return to the decoder from which the one in use was adapted."""
    number, parent = roll_back(load_config(config).central.data_dir)
    typer.echo(
        f"version {number} is out of use; {f'version {parent}' if parent else 'the release'} is in use"
    )
