"""`epic convert`: convert a run folder to a released model (device bundle and decoder)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from boards.profile import load_board
from boards.quiet import hold_output

if TYPE_CHECKING:
    from convert.flow import Conversion
    from convert.verify import Agreement

app = typer.Typer(help="Make a device bundle and its decoder from a training run.")


@app.command()
def convert(
    run: Annotated[Path, typer.Argument(help="Run folder, as `epic train epic` leaves it.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to hold bundle/ and decoder/.")],
    board: Annotated[
        str | None, typer.Option("--board", help="Budget of this board instead of the smallest one's.")
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option("--held-out", help="OpenFWI files of the test set. Default: the run's validation set."),
    ] = None,
    c_array: Annotated[bool, typer.Option("--c-array", help="Also write the encoder as C source.")] = False,
    encoder: Annotated[
        Path | None,
        typer.Option(
            "--encoder", help="Your own Keras encoder (.keras) for RUN's decoder, instead of RUN's."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Quantise a run's encoder to int8, verify and budget it, and write OUT/bundle and OUT/decoder.

    Fails, and writes nothing, when int8 costs more than 3 % of the decoded map's error, when the
    map is no better than the mean map, when the encoder does not fit, or when it has collapsed.
    """
    profile = load_board(board) if board else None
    with Console(stderr=True).status("loading TensorFlow") as status:
        # TensorFlow's C++ code prints a banner during import.
        with hold_output():
            from convert.flow import convert_run
            from models.data.held_out import uncompared
            from models.training.run_config import read_config
        conversion = convert_run(
            run,
            out,
            profile,
            tuple(held_out or ()),
            c_array,
            encoder,
            on_step=lambda step: status.update(step),
        )
        for line in uncompared(read_config(run)) if held_out else ():
            typer.echo(f"warning: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(conversion.to_dict(), indent=2))
        return
    _print(conversion, Console())
    if profile is not None:
        typer.echo(f"{profile.title}: {profile.status}; {profile.status_note}.")
    for warning in conversion.verification.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"Written: {out}/bundle (devices) and {out}/decoder (centre).")


def _print(conversion: Conversion, console: Console) -> None:
    measured = conversion.verification
    budget = Table("budget", "", title=f"encoder {conversion.model_hash} for {conversion.target}")
    for verdict in conversion.verdicts:
        budget.add_row(verdict.question, verdict.said)
    budget.add_row("latent, centred SQNR", f"{measured.sqnr_db:.1f} dB")
    budget.add_row("LiteRT: XNNPACK against its own kernels", _said(measured.xnnpack))
    budget.add_row(
        "TFLite-Micro against LiteRT's own kernels",
        _said(measured.tflm) if measured.tflm else conversion.arena_note,
    )
    budget.add_row("stock MicroPython", conversion.micropython)
    console.print(budget)
    errors = Table(
        "family", "samples", "MAE float", "int8 Linux", "int8 micro", "cost", title="error of the decoded map"
    )
    for name, error in [*measured.families.items(), ("all", measured.overall)]:
        errors.add_row(
            name,
            str(error.n),
            f"{error.mae_float:.4f}",
            f"{error.mae_int8:.4f}",
            f"{error.mae_int8_micro:.4f}",
            f"{error.cost_percent:+.2f} %",
        )
    console.print(errors)
    rates = Table("bytes a latent", "values", "bits", "MAE", "cost", title="devices at a lower rate")
    whole, *lower = measured.mae_by_rate.items()
    for rate, mae in lower:
        cells = (
            rate.payload_bytes,
            rate.values,
            rate.bits,
            f"{mae:.4f}",
            f"{100 * (mae / whole[1] - 1):+.2f} %",
        )
        rates.add_row(*map(str, cells))
    console.print(rates)


def _said(agreement: Agreement) -> str:
    return (
        f"{100 * agreement.differing_fraction:.2f} % of elements differ, by at most "
        f"{agreement.max_difference_lsb}, over {agreement.latents} latents"
    )
