"""``epic train`` and ``epic evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.errors import TrainingError
from models.training.budget import Budget
from physics.files.survey_file import read_survey

app = typer.Typer(help="Train and evaluate networks.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def limit_threads(threads: int) -> None:
    """Set the thread count of TensorFlow, which reads it only before its first operation."""
    import keras

    if keras.backend.backend() == "tensorflow" and threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


@app.command()
def train(
    kind: Annotated[
        str,
        typer.Argument(help="epic, or a baseline: inversionnet, bigfwi-m, bigfwi-xl (central), federated."),
    ],
    data: Annotated[list[Path], typer.Option(help="Folder with OpenFWI files; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run in it goes on.")],
    minutes: Annotated[float | None, typer.Option(help="Training time.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch: int = 32,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its peak; default: 0.003 with muon, 0.0015 with adamw.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="Size of the encoder: micro, small or base.")] = "small",
    decoder: Annotated[
        str, typer.Option(help="Size of the fusion decoder: small, or deep for a GPU's training.")
    ] = "small",
    simulate: Annotated[
        int | None,
        typer.Option(
            help="Model so many samples a family on the GPU, going on with DATA's sequence, rather than read files."
        ),
    ] = None,
    thin: Annotated[int, typer.Option(help="Samples averaged into one before encoding.")] = 10,
    start_from: Annotated[Path | None, typer.Option(help="Run or released model to begin with.")] = None,
    precision: Annotated[
        str, typer.Option(help="Arithmetic of training: float32, or mixed_bfloat16 where it is faster.")
    ] = "float32",
    optimiser: Annotated[
        str | None, typer.Option(help="muon or adamw; default: muon for epic, adamw for the baselines.")
    ] = None,
    survey: Annotated[
        Path | None,
        typer.Option(help="survey.toml; default: what the data were made for, else OpenFWI's survey."),
    ] = None,
    quantised: Annotated[
        bool,
        typer.Option("--quantised", help="Refine --start-from with the encoder's int8 rounding in the loop."),
    ] = False,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered", help="Latents that decode from their first values: lower rates at run time."
        ),
    ] = False,
    ablate: Annotated[
        str | None,
        typer.Option(
            help="For comparison, EPIC without attention (latents concatenated), positions (of devices) or drop-out."
        ),
    ] = None,
    without: Annotated[str | None, typer.Option("--without", hidden=True)] = None,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to the backend.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a network; resumes when OUT holds a checkpoint."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if simulate is not None and survey is not None:
        raise TrainingError(
            "train: simulated samples are of the survey of the data whose sequence they go on with; leave out --survey"
        )
    if without:
        typer.echo("--without is deprecated; use --ablate", err=True)
        ablate = ablate or without
    limit_threads(threads)
    from models.data.simulated import Simulated, read_sequence
    from models.data.simulated import simulate as make_samples
    from models.recipes import recipe_of
    from models.training.request import TrainRequest
    from models.training.run import start_run

    optimiser = optimiser or recipe_of(kind).optimiser
    budget = Budget(
        batch=batch,
        learning_rate=learning_rate or (3e-3 if optimiser == "muon" else 1.5e-3),
        minutes=minutes,
        epochs=epochs,
        seed=seed,
        precision=precision,
        quantised=quantised,
        ordered=ordered,
        optimiser=optimiser,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        loading = bar.add_task("loading", total=None)
        training = bar.add_task("training", total=1.0, visible=False)

        def on_load(done: int, total: int) -> None:
            bar.update(loading, completed=done, total=total, description=f"loading {done}/{total}")

        def on_progress(share: float, figures: dict) -> None:
            text = f"epoch {figures['epoch']:.2f}  loss {figures['loss']:.4f}"
            bar.update(training, completed=share, visible=True, description=text)

        def source() -> Simulated:
            return make_samples(read_sequence(data[0]), simulate or 0, thin, on_load)

        request = TrainRequest(
            kind,
            data,
            out,
            budget,
            thin=thin,
            encoder=encoder,
            decoder=decoder,
            start_from=start_from,
            ablate=ablate,
            acquisition=read_survey(survey) if survey else None,
            source=source if simulate is not None else None,
        )
        metrics = start_run(request, on_progress, on_load)
    _print_table(metrics["families"], "watched samples (not trained on)", as_json, metrics)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="A finished run folder; with --all, several.")],
    data: Annotated[list[Path], typer.Option(help="Held-out OpenFWI folder; repeat for more.")],
    missing: Annotated[list[int] | None, typer.Option(help="A device not heard; repeat for more.")] = None,
    physics: Annotated[
        int,
        typer.Option(
            help="Instead: model so many predicted maps, and hold their latents against the recorded."
        ),
    ] = 0,
    compared: Annotated[
        bool,
        typer.Option(
            "--all", help="One table of all runs, with bytes an event, parameters and a device's work."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print MAE, RMSE and SSIM of a run on held-out data, family by family."""
    if compared:
        _compare(runs, data, tuple(missing or ()), as_json)
        return
    if len(runs) > 1:
        raise TrainingError(f"evaluate: got {len(runs)} runs; give one, or --all for one table of them")
    (run,) = runs
    if physics:
        _evaluate_physics(run, data, physics, as_json)
        return
    from models.evaluation.evaluate import evaluate_run

    table = evaluate_run(run, data, tuple(missing or ()))
    _print_table(table, f"{run.name} on held-out data", as_json, {"families": table})


def _compare(runs: list[Path], data: list[Path], missing: tuple[int, ...], as_json: bool) -> None:
    from models.evaluation.comparison import compare_runs

    rows = compare_runs(runs, data, missing)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table("", *(row.name for row in rows), title="held-out data")
    for error, digits in (("mae", 4), ("rmse", 4), ("ssim", 3)):
        for family in rows[0].families:
            drawn.add_row(
                f"{error.upper()} {family}", *(f"{row.families[family][error]:.{digits}f}" for row in rows)
            )
        drawn.add_section()
    drawn.add_row("bytes an event", *(f"{row.bytes_per_event:,}" for row in rows))
    drawn.add_row("parameters", *(f"{row.parameters:,}" for row in rows))
    drawn.add_row("MACs on a device", *(f"{row.device_macs:,}" for row in rows))
    Console().print(drawn)


def _evaluate_physics(run: Path, data: list[Path], count: int, as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from models.evaluation.consistency import measure_consistency

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("modelling", total=count)
        found = measure_consistency(run, data, count, lambda done, total: bar.update(task, completed=done))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"Latent distance, in standard deviations, of {count} samples (median): true map {found['truth']:.3f}, "
        f"predicted map {found['predicted']:.3f}, predicted map and another sample {found['unrelated']:.3f}."
    )
    typer.echo(
        f"Rank correlation of a map's distance with its error: {found['correlation']:.2f}. MAE {found['mae']:.4f}; of "
        f"the tenth with the largest distance {found['mae_of_flagged']:.4f}."
    )


def _print_table(table: dict, title: str, as_json: bool, content: dict) -> None:
    if as_json:
        typer.echo(json.dumps(content))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table("family", "samples", "MAE", "MAE m/s", "RMSE", "SSIM", "MAE of mean map", title=title)
    for family, row in table.items():
        drawn.add_row(
            family,
            str(row["count"]),
            f"{row['mae']:.4f}",
            f"{row['mae_mps']:.0f}",
            f"{row['rmse']:.4f}",
            f"{row['ssim']:.3f}",
            f"{row['mean_map_mae']:.4f}",
        )
    Console().print(drawn)
