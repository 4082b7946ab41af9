"""``epic data``: generate, import and inspect data sets."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from physics.acquisition import Acquisition
from physics.dataset import DatasetRequest, check_seed, distinct, generate_dataset
from physics.families import FAMILIES
from physics.files.atomic import atomic_write
from physics.files.field_files import FieldFileError
from physics.files.json_keys import has_keys
from physics.files.openfwi_files import create_array
from physics.files.survey_file import read_survey
from physics.gather_checks import expected_peaks, looks_reversed, notes_on

SurveyOption = Annotated[
    Path | None,
    typer.Option(
        "--survey", help="survey.toml, or a bundle's or data set's manifest.json; default: OpenFWI's survey."
    ),
]
# Cells per wavelength below which numerical dispersion becomes visible.
FEW_CELLS = 8

app = typer.Typer(help="Create and inspect data sets in OpenFWI's layout.", no_args_is_help=True)


@app.command()
def generate(
    families: Annotated[list[str], typer.Argument(help="Families by name, or 'all'.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set; an interrupted run in it is continued.")],
    count: Annotated[int, typer.Option(help="Samples of each family.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same data set.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first sample of the seed's sequence.")] = 0,
    engine: Annotated[
        str,
        typer.Option(help="openfwi (the benchmark's own scheme), or cuda (the same on an NVIDIA GPU)."),
    ] = "openfwi",
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one a core.")] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask scheduler, tcp://HOST:PORT: its workers model, in place of processes."),
    ] = None,
    survey: SurveyOption = None,
    twins: Annotated[
        bool,
        typer.Option(
            "--twins",
            help="Also model the shots that an exact mirror image needs; training sets then count twice.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw velocity maps and model their gathers; writes OpenFWI files and a manifest."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    names = list(FAMILIES) if families == ["all"] else distinct(families)
    request = DatasetRequest(tuple(names), count, seed, _survey(survey), engine, first, twins)
    columns = (TextColumn("modelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("modelling", total=count * len(names))
        files = generate_dataset(
            request,
            out,
            workers=workers or os.cpu_count() or 1,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            scheduler=scheduler,
        )
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in files], "samples": count * len(names)}))
    else:
        typer.echo(f"{count * len(names)} samples in {len(files)} files under {out}")


@app.command("import")
def import_field_file(
    paths: Annotated[
        list[Path],
        typer.Argument(help="SEG-Y, SU, SEG-2 or miniSEED file of one event, or one file per shot."),
    ],
    out: Annotated[Path, typer.Option(help=".npy file to write; a .json file beside it records the steps.")],
    geometry: Annotated[
        Path | None, typer.Option(help="miniSEED: TOML with `receivers` (SEED ids) and `shots` (times).")
    ] = None,
    origin_x_m: Annotated[
        float | None,
        typer.Option(
            help="Place of the survey's first cell along the line (x, or y of a line to the north); "
            "default: where the first receiver stands in its own."
        ),
    ] = None,
    gain: Annotated[float, typer.Option(help="Factor applied to the samples.")] = 1.0,
    component: Annotated[
        str | None,
        typer.Option(
            help="Component to use where there are several: vertical, crossline, inline, transverse, radial, pressure."
        ),
    ] = None,
    stack: Annotated[bool, typer.Option("--stack", help="Average repeated shots.")] = False,
    allow_silent: Annotated[
        bool, typer.Option("--allow-silent", help="Accept more than a quarter of the traces silent.")
    ] = False,
    interval_ms: Annotated[
        float | None, typer.Option(help="Sample interval, where headers lack it or contradict each other.")
    ] = None,
    survey: SurveyOption = None,
) -> None:
    """Resample a field recording onto the survey's grid, for devices and `epic testbed run --data`."""
    from physics.files.field_files import ImportOptions, read_field_gather

    acquisition = _survey(survey)
    steps = out.with_suffix(".json")
    _check_output(out, steps)
    options = ImportOptions(
        geometry,
        origin_x_m,
        gain,
        component,
        stack,
        allow_silent,
        None if interval_ms is None else interval_ms / 1e3,
    )
    read = read_field_gather(paths, acquisition, options)
    with create_array(out, acquisition.gather_shape) as array:
        array[:] = read.gather
    content: dict[str, object] = {"source": ", ".join(map(str, paths)), "steps": read.steps}
    if read.origin_m is not None:
        content |= {"origin_m": read.origin_m, "azimuth_deg": read.azimuth_deg}
    with atomic_write(steps) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    for step in read.steps:
        typer.echo(_plain(step))
    peak = float(abs(read.gather).max())
    peaks = _expected_peaks(survey, acquisition)
    if peaks is None:
        typer.echo(
            f"{out}: peak {peak:.3g}; give --survey the manifest.json of your model's bundle to judge it"
        )
    else:
        typer.echo(
            f"{out}: peak {peak:.3g}; the model knows gathers with peaks of {peaks[0]:.0f} to {peaks[1]:.0f}"
        )
    for note in notes_on(read.gather, acquisition, peaks):
        typer.echo(f"note: {note}")
    sign = -1 if looks_reversed(read.gather, acquisition) else 1
    if sign < 0 or (peaks is not None and not peaks[0] <= peak <= peaks[1]):
        loudness = sum(peaks) / 2 / peak if peaks is not None else 1.0
        typer.echo(f"Import again with --gain {float(f'{sign * gain * loudness:.2g}'):g}")


def _plain(said: str) -> str:
    """Escape what a terminal would obey: names come from servers and recordings."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)


def _check_output(out: Path, steps: Path) -> None:
    """Raise ``FieldFileError`` if writing ``out`` would overwrite a file that no import wrote."""
    if out.suffix != ".npy" or not out.parent.is_dir() or out.is_dir():
        raise FieldFileError(f"{out}: expected a .npy file in a folder that exists")
    if not steps.exists():
        return
    try:
        is_own = has_keys(steps, {"source", "steps"})
    except OSError:
        is_own = False
    if not is_own:
        raise FieldFileError(
            f"{steps}: is another file than the steps of an import, and would be overwritten; give another --out"
        )


def _expected_peaks(survey: Path | None, acquisition: Acquisition) -> tuple[float, float] | None:
    """Return the peak range of a survey's training gathers; None if no model is known."""
    if survey is not None and survey.suffix == ".json":
        match json.loads(survey.read_text()):
            case {"companding": {"k": int() | float() as k, "c": int() | float() as c}} if k > 0:
                return expected_peaks(math.sinh(c) / k)
    return expected_peaks() if acquisition.records_as(Acquisition.openfwi()) else None


@app.command("follow")
def follow_server(
    server: Annotated[
        str, typer.Argument(help="SeedLink server: HOST, HOST:PORT, [IPV6]:PORT or seedlink://HOST:PORT.")
    ],
    geometry: Annotated[
        Path, typer.Option(help="TOML with `receivers`, the SEED id of each along the line.")
    ],
    shots: Annotated[Path, typer.Option(help="Lines event,source,time; the file may grow.")],
    out: Annotated[Path, typer.Option(help="Folder of the gathers, as a device's [source] path.")],
    device: Annotated[int | None, typer.Option(help="Follow and write only this device's receivers.")] = None,
    gain: Annotated[float, typer.Option(help="Factor applied to the samples.")] = 1.0,
    wait_s: Annotated[
        float, typer.Option(help="Wait for a receiver until the line is this far past the event, s.")
    ] = 10.0,
    events: Annotated[int, typer.Option(min=0, help="End after this many events; 0 runs until Ctrl-C.")] = 0,
    survey: SurveyOption = None,
) -> None:
    """Cut each event's gather out of a live SeedLink stream as soon as it is complete."""
    from physics.files.seedlink import Following, follow

    acquisition = _survey(survey)
    following = Following(server, geometry, shots, out, acquisition, device, gain, wait_s)
    follow(
        following,
        events,
        lambda said: typer.echo(_plain(said)),
        lambda said: typer.echo(_plain(said), err=True),
    )


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    seed: int = 0,
    columns: Annotated[int, typer.Option(min=1, help="Maps of each family.")] = 8,
    survey: SurveyOption = None,
) -> None:
    """Draw maps of all ten families on one sheet."""
    if out.suffix.lower() != ".png" or not out.parent.is_dir() or out.is_dir():
        raise FieldFileError(f"{out}: expected a .png file in a folder that exists")
    from physics.sheet import draw_sheet

    draw_sheet(out, check_seed(seed), columns, _survey(survey))
    typer.echo(f"{len(FAMILIES) * columns} maps in {out}")


@app.command("survey")
def show_survey(
    path: Annotated[Path, typer.Argument(help="survey.toml, or a bundle's or data set's manifest.json.")],
) -> None:
    """Check a survey and print its grid, sampling, sources and receivers."""
    a = read_survey(path)
    wavelength_m = a.velocity_min_mps / a.peak_frequency_hz
    typer.echo(
        f"map        {a.n_depth} x {a.n_width} cells of {a.dx_m:g} m, "
        f"{a.velocity_min_mps:g} to {a.velocity_max_mps:g} m/s"
    )
    typer.echo(
        f"record     {a.n_time} samples of {1e3 * a.dt_s:g} ms; shortest wavelength at {a.peak_frequency_hz:g} Hz: "
        f"{wavelength_m:.0f} m, {wavelength_m / a.dx_m:.1f} cells"
    )
    typer.echo(f"sources    {a.n_sources} at {', '.join(f'{x:g}' for x in a.distance_m(a.source_cells))} m")
    receivers_m = a.distance_m(a.receiver_cells)
    typer.echo(f"receivers  {a.n_receivers} from {receivers_m[0]:g} to {receivers_m[-1]:g} m")
    for device, group in enumerate(a.device_receivers):
        first, last = group[0], group[-1]
        typer.echo(
            f"device {device:<3} receivers {first} to {last}, {receivers_m[first]:g} to {receivers_m[last]:g} m"
        )
    if wavelength_m < FEW_CELLS * a.dx_m:
        typer.echo(
            f"note: expected at least {FEW_CELLS} cells a wavelength; waves will disperse. Take smaller cells or a "
            "lower frequency"
        )


def _survey(path: Path | None) -> Acquisition:
    return read_survey(path) if path else Acquisition.openfwi()
