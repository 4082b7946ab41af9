"""``epic testbed``: run the whole system on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from models.released import DEFAULT_NAME

# An emulated device is about fifty times slower, and five of them share this machine's cores.
EMULATED_TIMEOUT_S = 600.0

app = typer.Typer(help="Five devices and a centre on this machine.", no_args_is_help=True)


@app.command()
def run(
    events: Annotated[int, typer.Option(min=0, help="Events to replay; 0 takes every gather once.")] = 0,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="OpenFWI gather file or a single gather; repeat for more. Default: shipped ones."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("out/testbed"),
    model: Annotated[
        str, typer.Option(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ] = DEFAULT_NAME,
    bundle: Annotated[Path | None, typer.Option(help="Another bundle for the devices.")] = None,
    port: Annotated[int, typer.Option(min=0, max=0xFFFF, help="Port of the centre; 0 takes a free one.")] = 0,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Use links without keys and encryption.")
    ] = False,
    device_arch: Annotated[
        Literal["native", "arm64"],
        typer.Option(help="Processor of the devices; arm64 is emulated, see `epic testbed arm64`."),
    ] = "native",
    fetch: Annotated[
        int,
        typer.Option(
            min=0,
            help="Afterwards fetch the recordings of this many events, those with the least certain maps.",
        ),
    ] = 0,
    refine: Annotated[
        bool, typer.Option("--refine", help="Refine the maps of the fetched events by their recordings.")
    ] = False,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of a refinement.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Replay gathers through five device processes and a central one; draw the maps."""
    from rich.console import Console

    from testbed import arm64
    from testbed.errors import TestbedError
    from testbed.processes import NATIVE
    from testbed.run import RunOptions, find_model, run_testbed

    if refine and not fetch:
        raise TestbedError("testbed: --refine needs recordings; give --fetch N as well")
    emulated = device_arch == "arm64"
    with Console(stderr=True).status("preparing") as status:
        options = RunOptions(
            port,
            insecure,
            timeout_s=EMULATED_TIMEOUT_S if emulated else 60.0,
            devices_on=arm64.runtime() if emulated else NATIVE,
            fetch=fetch,
            refine_iterations=iterations if refine else 0,
        )
        results = run_testbed(find_model(model, bundle), data or [], events, out, options, status.update)
    if as_json:
        typer.echo(json.dumps(results))
    else:
        _print(results)


@app.command("arm64")
def prepare_arm64() -> None:
    """Unpack an arm64 Python and a device's aarch64 wheels into out/arm64, for `run --device-arch arm64`.

    Uses apt and pip, on Debian 12; root is not needed. Existing files are kept.
    """
    from rich.console import Console

    from testbed import arm64

    with Console(stderr=True).status("preparing") as status:
        arm64.prepare(on_step=status.update)
    typer.echo(f"{arm64.FOLDER} holds an arm64 device. Next: epic testbed run --device-arch arm64")


@app.command()
def compare(
    links: Annotated[str, typer.Option(help="Emulated links, with commas between.")] = "wifi,lte",
    systems: Annotated[
        str,
        typer.Option(help="What to compare, with commas between; epic-32 is EPIC with 32 bytes a latent."),
    ] = "epic,epic-32,epic-8,raw,raw-compressed,split,federated",
    events: Annotated[int, typer.Option(min=1, help="Events under a link's own conditions.")] = 20,
    data: Annotated[
        list[Path] | None, typer.Option(help="OpenFWI gather file; repeat for more. Default: shipped ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("out/compare"),
    model: Annotated[
        str, typer.Option(help="Name of a released model, or a folder with bundle/ and decoder/.")
    ] = DEFAULT_NAME,
    trained: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run of `epic train inversionnet` or of `epic train federated`: a baseline's weights; repeat for both."
        ),
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(help="Devices encode as slowly as this board, as `epic board list` names it."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown page to write, figures in images/ by it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """EPIC against baselines over emulated links: latency, bytes, energy, maps; with losses and a device missing."""
    import shlex
    import sys
    from datetime import date

    from rich.console import Console

    from testbed.comparison.compare import ComparisonPlan
    from testbed.comparison.compare import compare as run_comparison
    from testbed.comparison.report import draw
    from testbed.comparison.report import page as written
    from testbed.run import find_model

    with Console(stderr=True).status("preparing") as status:
        plan = ComparisonPlan(
            [name.strip() for name in systems.split(",")],
            [name.strip() for name in links.split(",")],
            events,
            data or [],
            trained or [],
            board,
        )
        results = run_comparison(plan, find_model(model), out, status.update)
    draw(results, out)
    if page:
        pictures = page.parent / "images"
        pictures.mkdir(parents=True, exist_ok=True)
        draw(results, pictures)
        command = shlex.join(["epic", *sys.argv[1:]])
        page.write_text(written(results, command, date.today().isoformat(), Path("images")))
    if as_json:
        typer.echo(json.dumps(results))
        return
    for row in results["ratios"]:
        times = ", ".join(
            f"{name.replace('_', ' ')} {row[name]:,.1f}x"
            for name in row
            if name not in ("link", "system", "against")
        )
        typer.echo(f"{row['link']}, {row['system']} against {row['against']}: {times}")
    typer.echo(f"Results and figures in {out}.")


def _print(results: dict) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Piped output has no width; the table needs 108 columns.
    console.width = max(console.width, 108)
    table = Table(title=f"model {results['model']}; times in ms", box=SIMPLE_HEAD)
    for name in (
        "event",
        "family",
        "bytes",
        "encode",
        "link",
        "assemble",
        "decode",
        "MAE m/s",
        "MAE",
        "SSIM",
    ):
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    table.add_column("misfit", justify="right", no_wrap=True)
    for row in results["events"]:
        cells = [row["event"], row["family"], row["bytes"]]
        cells += [f"{row['ms'][step]:.1f}" for step in ("encode", "link", "assemble", "decode")]
        cells += ["-" if row[key] is None else row[key] for key in ("mae_mps", "mae", "ssim", "misfit")]
        table.add_row(*map(str, cells))
    console.print(table)
    total = results["total"]
    steps = ", ".join(f"{step.replace('_', ' ')} {value} ms" for step, value in total["median_ms"].items())
    console.print(f"Median latency: {steps}.")
    console.print(f"Links: {results['links']}. Devices: {results['devices_on']}.")
    console.print(
        f"{total['maps']} map{'s' * (total['maps'] != 1)} from devices {total['devices_present']}, "
        f"{total['lost']} records lost; "
        f"{total['bytes_an_event']:.0f} bytes an event (both ways, without TCP/IP headers) "
        f"against {total['raw_bytes_an_event']:,} raw: "
        f"{total['times_fewer_bytes']:.0f} times fewer."
    )
    console.print(
        f"Latent records alone, as the page counts: {total['record_bytes_an_event']:.0f} bytes an event."
    )
    for row in results.get("fetched", []):
        console.print(f"{_fetched(row)}.", soft_wrap=True)
    if any(row["misfit"] is not None for row in results["events"]):
        console.print(
            "misfit: the wave equation's answer to the map against the recording, relative; for gathers without a "
            "true map."
        )
    config = f"{results['folder']}/central.toml"
    console.print(f"Pictures and logs in {results['folder']}.")
    console.print(
        f"Next: epic central list --config {config}, epic central page --config {config}", soft_wrap=True
    )


def _fetched(row: dict) -> str:
    """Return one line about an event: its fetched bytes and, if it was refined, misfit and error."""
    account = row["fetched"]
    exact = "bit for bit" if row["bit_for_bit"] else "with a misfit"
    kilobytes = account["bytes"] / 1000
    line = f"event {row['event']}, {row['family']}: {kilobytes:.0f} kB fetched in {account['s']} s, {exact}"
    if refined := row.get("refined"):
        before, after = refined["misfit"]
        line += (
            f"; refined in {refined['s']:.0f} s ({refined['core_s']:.0f} of a core), {refined['iterations']} "
            f"iterations, misfit {before:.3g} to "
            f"{after:.3g}"
        )
        if "mae_mps" in refined:
            line += f"; error {row['mae_mps']} to {refined['mae_mps']} m/s"
    return line
