"""``epic train`` and ``epic evaluate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import TrainingError

if TYPE_CHECKING:
    from models.training.settings import Settings

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
        str | None,
        typer.Argument(help="epic, or a baseline: inversionnet or bigfwi-m (central), federated."),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder with OpenFWI files; repeat for more.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; an interrupted run there is resumed.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these options as keys; options override it.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Resume the run in this folder with its own settings; --minutes may extend it."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    patience: Annotated[
        float | None,
        typer.Option(help="Stop after this many epochs without a smaller validation loss. Default: never."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step. Default: 32.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: 0.003 with muon, 0.0015 with adamw.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Size of the encoder: micro, small (default) or base.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="Size of the fusion decoder: small (default), or deep for a GPU's training."),
    ] = None,
    simulate: Annotated[
        int | None,
        typer.Option(
            help="Model this many samples a family on the GPU, after those of DATA, and read no files."
        ),
    ] = None,
    decimation: Annotated[
        int | None,
        typer.Option(help="Samples averaged into one before encoding. Default: 10."),
    ] = None,
    thin: Annotated[int | None, typer.Option("--thin", hidden=True)] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Run or released model whose weights to start from.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 (default), or mixed_bfloat16 where that is faster.")
    ] = None,
    optimiser: Annotated[
        str | None, typer.Option(help="muon or adamw. Default: muon for epic, adamw for the baselines.")
    ] = None,
    survey: Annotated[
        Path | None,
        typer.Option(help="survey.toml. Default: the survey of the data, else OpenFWI's."),
    ] = None,
    quantised: Annotated[
        bool,
        typer.Option("--quantised", help="Refine --start-from with the encoder's int8 rounding in the loop."),
    ] = False,
    nested: Annotated[
        bool,
        typer.Option("--nested", help="Nested latents: their first values decode alone, at lower rates."),
    ] = False,
    ordered: Annotated[bool, typer.Option("--ordered", hidden=True)] = False,
    ablate: Annotated[
        str | None,
        typer.Option(help="For comparison, EPIC without attention, positions (of devices) or drop-out."),
    ] = None,
    without: Annotated[str | None, typer.Option("--without", hidden=True)] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also log to OUT/tensorboard, for `tensorboard --logdir OUT`."),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and augmentation. Default: 0.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the backend decides.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network; resumes when OUT holds a checkpoint."""
    if without:
        typer.echo("--without is deprecated; use --ablate", err=True)
        ablate = ablate or without
    if ordered:
        typer.echo("--ordered is deprecated; use --nested", err=True)
        nested = True
    if thin:
        typer.echo("--thin is deprecated; use --decimation", err=True)
        decimation = decimation or thin
    given = {
        "kind": kind,
        "data": data,
        "out": out,
        "minutes": minutes,
        "epochs": epochs,
        "patience": patience,
        "batch": batch,
        "learning_rate": learning_rate,
        "encoder": encoder,
        "decoder": decoder,
        "simulate": simulate,
        "decimation": decimation,
        "start_from": start_from,
        "precision": precision,
        "optimiser": optimiser,
        "survey": survey,
        "quantised": quantised,
        "nested": nested,
        "ablate": ablate,
        "tensorboard": tensorboard,
        "seed": seed,
        "threads": threads,
    }
    from models.training.settings import read_settings

    settings = read_settings(given, config, resume)
    limit_threads(settings.threads)
    try:
        metrics = _train(settings)
    except KeyboardInterrupt:
        from models.training.training import has_checkpoint

        advice = f"go on with: epic train --resume {settings.out}"
        if not has_checkpoint(settings.out):
            advice = "nothing is saved yet; start it again with the same command"
        typer.echo(f"stopped; {advice}", err=True)
        raise
    best = metrics["best"]
    title = f"validation set (not trained on), weights of step {best['step']}, epoch {best['epoch']:.2f}"
    _print_table(metrics["families"], title, as_json, metrics)


def _train(settings: Settings) -> dict:
    """Train with a progress bar and a line for each row of the history; return the metrics."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from models.data.simulated import Simulated, read_sequence
    from models.data.simulated import simulate as make_samples
    from models.training.run import start_run

    request = settings.request()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        loading = bar.add_task("loading", total=None)
        training = bar.add_task("training", total=1.0, visible=False)

        def on_load(done: int, total: int) -> None:
            bar.update(loading, completed=done, total=total, description=f"loading {done}/{total}")

        def on_progress(share: float, figures: dict) -> None:
            text = f"epoch {figures['epoch']:.2f}  loss {figures['loss']:.4f}"
            bar.update(training, completed=share, visible=True, description=text)

        def on_report(row: dict) -> None:
            bar.console.print(
                f"step {row['step']}  epoch {row['epoch']:.2f}  training loss {row['loss']:.4f}  "
                f"validation loss {row['validation_loss']:.4f}  MAE {row['validation_mae']:.4f}",
                highlight=False,
                soft_wrap=True,
            )

        def source() -> Simulated:
            return make_samples(
                read_sequence(settings.data[0]), settings.simulate or 0, settings.decimation, on_load
            )

        if settings.simulate is not None:
            request = replace(request, source=source)
        return start_run(request, on_progress, on_load, on_report)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="A finished run folder; with --all, several.")],
    data: Annotated[list[Path], typer.Option(help="Held-out OpenFWI folder; repeat for more.")],
    missing: Annotated[
        list[int] | None, typer.Option(help="Number of a missing device; repeat for more.")
    ] = None,
    physics: Annotated[
        int,
        typer.Option(
            help="Instead: model this many predicted maps, and compare their latents with the recorded ones."
        ),
    ] = 0,
    compared: Annotated[
        bool,
        typer.Option(
            "--all", help="One table of all runs, with bytes an event, parameters and a device's work."
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="With --all: also draw curves, errors and maps of the runs to this .png, .pdf or .svg."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print MAE, RMSE and SSIM of a run on held-out data, family by family."""
    if physics and (compared or missing):
        option = "--all" if compared else "--missing"
        raise TrainingError(
            f"evaluate: --physics checks one run with all devices; leave out {option}, or --physics"
        )
    _warn_of_uncompared(runs)
    if compared:
        _compare(runs, data, tuple(missing or ()), picture, as_json)
        return
    if picture:
        raise TrainingError("evaluate: --picture compares runs; give --all, or leave it out")
    if len(runs) > 1:
        raise TrainingError(f"evaluate: got {len(runs)} runs; give one, or --all for one table of them")
    (run,) = runs
    if physics:
        _evaluate_physics(run, data, physics, as_json)
        return
    from models.evaluation.evaluate import evaluate_run

    table = evaluate_run(run, data, tuple(missing or ()))
    _print_table(table, f"{run.name} on held-out data", as_json, {"families": table})


def _warn_of_uncompared(runs: list[Path]) -> None:
    from models.data.held_out import uncompared
    from models.training.run_config import read_config

    for run in runs:
        for line in uncompared(read_config(run)):
            typer.echo(f"warning: {line}", err=True)


def _compare(
    runs: list[Path], data: list[Path], missing: tuple[int, ...], picture: Path | None, as_json: bool
) -> None:
    from models.evaluation.comparison import check_picture, compare_runs, draw_comparison

    if picture:
        check_picture(picture)
    compared = compare_runs(runs, data, missing)
    rows = compared.rows
    if picture:
        draw_comparison(compared, picture)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table("", *(row.name for row in rows), title="test data")
    for error, digits in (("mae", 4), ("rmse", 4), ("ssim", 3)):
        for family in rows[0].families:
            grid.add_row(
                f"{error.upper()} {family}", *(f"{row.families[family][error]:.{digits}f}" for row in rows)
            )
        grid.add_section()
    grid.add_row("bytes an event", *(f"{row.bytes_per_event:,}" for row in rows))
    grid.add_row("parameters", *(f"{row.parameters:,}" for row in rows))
    grid.add_row("MACs on a device", *(f"{row.device_macs:,}" for row in rows))
    Console().print(grid)


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

    columns = ("family", "samples", "MAE", "MAE m/s", "RMSE", "SSIM", "MAE of mean map")
    caption = (
        "MAE of mean map: each sample's map predicted by the mean map of its family, without a recording"
    )
    grid = Table(*columns, title=title, caption=caption)
    for family, row in table.items():
        grid.add_row(
            family,
            str(row["count"]),
            f"{row['mae']:.4f}",
            f"{row['mae_mps']:.0f}",
            f"{row['rmse']:.4f}",
            f"{row['ssim']:.3f}",
            f"{row['mean_map_mae']:.4f}",
        )
    Console().print(grid)
