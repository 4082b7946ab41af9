"""`epic adapt`: train the decoder of a released model on other data; devices keep their encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boards.quiet import hold_output
from models.cli import limit_threads
from models.released import find_release

app = typer.Typer(help="Adapt the decoder of a released model to other ground.")


@app.command()
def adapt(
    model: Annotated[
        str, typer.Argument(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ],
    data: Annotated[list[Path], typer.Option(help="Folder with OpenFWI files; repeat for more.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the adapted model; an interrupted run there is resumed.")
    ],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 30.0,
    batch: int = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets the backend decide.")] = 0,
    seed: int = 0,
) -> None:
    """Train the decoder of MODEL on DATA and write OUT/bundle and OUT/decoder; the encoder is MODEL's own."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    with hold_output():
        from convert.adaptation import adapt as run_adaptation
        from models.training.budget import Budget
    limit_threads(threads)
    budget = Budget(
        batch=batch, learning_rate=learning_rate, minutes=minutes, seed=seed, optimiser="muon", ordered=True
    )
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("loading", total=1.0)

        def on_progress(share: float, figures: dict) -> None:
            bar.update(
                task, completed=share, description=f"epoch {figures['epoch']:.2f}  loss {figures['loss']:.4f}"
            )

        found = run_adaptation(find_release(model), data, out, budget, on_progress)
    table = Table("family", "samples", "MAE before", "MAE after", "MAE of mean map", title="validation set")
    for family, row in found.after.items():
        figures = (found.before[family]["mae"], row["mae"], row["mean_map_mae"])
        table.add_row(family, str(row["count"]), *(f"{value:.4f}" for value in figures))
    Console().print(table)
