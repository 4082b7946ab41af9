"""Generate the comparison page and two figures from ``results.json`` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from testbed.comparison.accounting import PARTS
from testbed.comparison.goals import against_goals, against_goals_on_board, as_it_is, ratios, where_time_goes
from testbed.comparison.run import is_epic

# Muted colours, also distinct in grey: encode, queue, link, assemble, decode.
COLOURS = ("#8c6bb1", "#bdbdbd", "#3182bd", "#fdae6b", "#31a354")


def draw(results: dict, folder: Path) -> list[Path]:
    """Plot ``testbed-latency.png`` and ``testbed-energy.png`` into ``folder``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    links = list(results["links"])
    paths = []
    figure = Figure(figsize=(4.6 * len(links) + 1.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, link in zip(_axes(figure, len(links)), links, strict=True):
        runs = as_it_is(results, link)
        left = np.zeros(len(runs))
        for part, colour in zip(PARTS, COLOURS, strict=True):
            values = np.array([run["median_ms"][part] for run in runs])
            axis.barh([run["system"] for run in runs], values, left=left, color=colour, label=part)
            left += values
        for place, total in enumerate(left):
            axis.text(total, place, f" {total:.0f} ms", va="center", fontsize=9)
        axis.set(title=f"{link}", xlabel="from recording to map (ms)", xlim=(0, 1.25 * left.max()))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    paths.append(folder / "testbed-latency.png")
    figure.savefig(paths[-1], dpi=110)

    with_radio = [link for link in links if "energy_mj" in as_it_is(results, link)[0]]
    if with_radio:
        figure = Figure(figsize=(4.6 * len(with_radio) + 1.2, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, link in zip(_axes(figure, len(with_radio)), with_radio, strict=True):
            runs = as_it_is(results, link)
            places = np.arange(len(runs))
            for offset, key, colour, label in (
                (-0.2, "energy_mj", COLOURS[2], "while bytes pass"),
                (0.2, "energy_with_tail_mj", COLOURS[1], "with promotion and tail"),
            ):
                axis.barh(places + offset, [run[key] for run in runs], 0.38, color=colour, label=label)
                for row, run in zip(places, runs, strict=True):
                    axis.text(
                        run[key],
                        row + offset,
                        f" {run[key]:,.{1 if run[key] < 100 else 0}f}",
                        va="center",
                        fontsize=8,
                    )
            axis.set_yticks(places, [run["system"] for run in runs])
            axis.set(title=link, xlabel="energy of the five radios, an event (mJ)", xscale="log")
            axis.margins(x=0.25)
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        paths.append(folder / "testbed-energy.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


_ASSUMPTIONS = (
    "Assumptions: the radio is connected when an event begins (no promotion) in the first energy column; in the "
    "second each event stands alone, so that every radio is promoted and lives through one whole tail. Slow start "
    "is not emulated and a baseline neither writes to a disk nor waits for its turn on a processor: all three "
    "spare the baselines. A baseline's encoders run one device at a time, EPIC's as they come, at this machine's "
    "speed. Every segment's TCP/IP header and every second one's acknowledgement count as bytes and as time on the "
    "air; a radio's own layers do not, but as the goodput that they leave. Recording itself, a second for every "
    "system, is in none of the figures."
)


def page(results: dict, command: str, date: str, pictures: Path) -> str:
    """Return the page in Markdown; ``pictures`` is the figures' folder relative to it."""
    trained = results["trained_baselines"]
    lines = [
        "# EPIC and its baselines over emulated links",
        "",
        f"Made by `{command}` on {date}. Model {results['model']} ({results['model_hash']}); {results['events']} "
        "events as it is, a quarter of that (4 at least) for each other condition; five device processes and a centre "
        f"for every system, CURVE on every link. It took {results['took_s'] / 60:.1f} minutes on "
        f"{results['load']['cores']} cores shared with other work, at nice {results['load']['nice']}, load average "
        f"{results['load']['before']} before and {results['load']['after']} after.",
        "",
        "Baselines' maps: "
        + (
            "of "
            + " and ".join(f"{kind} ({run})" for kind, run in trained.items())
            + "; split's with int8 activations, federated's the mean of its devices'. Of one without a run: times, "
            "bytes and energy only."
            if trained
            else "weights not trained, so times, bytes and energy only; what their maps are worth is in "
            "[baselines.md](baselines.md), on held-out data."
        ),
        "",
        f"![Latency by part]({pictures}/testbed-latency.png)",
        "",
        f"![Energy of the radios]({pictures}/testbed-energy.png)",
        "",
        "## How many times less EPIC takes",
        "",
        "| link | system | against | latency | bytes up, socket | bytes on the link | energy while bytes pass | "
        "with tail |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ratios(results):
        cells = [row["link"], row["system"], row["against"]]
        for name in ("latency", "socket_bytes_up", "link_bytes", "energy", "energy_with_tail"):
            cells.append(f"{row[name]:,.1f}" if name in row else "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", against_goals(results), "", *where_time_goes(results)]
    lines += _every_run(results["runs"])
    if results["board"]:
        lines += _on_board(results)
    lines += ["", "## Links and radios", ""]
    for name, link in results["links"].items():
        radio = link["radio"]
        lines.append(f"- **{name}**: {link['source']}." + (f" Radio: {radio['source']}." if radio else ""))
    lines += ["", *_against_tbf(results["tbf"]), "", _ASSUMPTIONS, ""]
    return "\n".join(lines)


def _every_run(runs: list[dict]) -> list[str]:
    lines = [
        "",
        "## Every run",
        "",
        "Milliseconds are medians over events of the slowest device; bytes and energy are of all devices, an event. "
        "`link` bytes and energy have TCP/IP headers of both ways. With losses and with a missing device, only "
        "the first of these events are sent, so that fewer events share the bytes of connecting: compare systems "
        "within a condition.",
        "",
        "| link | system | condition | latency | 95 % | "
        + " | ".join(PARTS)
        + " | up B | down B | link B | mJ | mJ with tail | MAE | SSIM |",
        "|" + "---|" * (12 + len(PARTS)),
    ]
    for run in runs:
        cells = [run["link"], run["system"], run["condition"]]
        cells += [f"{run['latency_median_ms']:.1f}", f"{run['latency_p95_ms']:.1f}"]
        cells += [f"{run['median_ms'][part]:.1f}" for part in PARTS]
        cells += [f"{run[key]:,}" for key in ("socket_bytes_up", "socket_bytes_down", "link_bytes")]
        cells += [f"{run[key]:,.4g}" if key in run else "-" for key in ("energy_mj", "energy_with_tail_mj")]
        cells += ["-" if run[key] is None else f"{run[key]:.3f}" for key in ("mae", "ssim")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against_tbf(checks: list[dict] | str) -> list[str]:
    if isinstance(checks, str):
        return [f"The proxy's rates were not held against the kernel's shaper: {checks}."]
    return [
        "One TCP stream of a second towards the centre, before the runs, through the proxy and through `tbf`, the "
        "kernel's own shaper, on a veth pair (Mbit/s of payload; delays were not compared):",
        "",
        "| link | asked | proxy | tbf |",
        "|---|---|---|---|",
        *(
            f"| {check['link']} | {' | '.join(f'{8e-6 * check[key]:.3f}' for key in ('asked', 'proxy', 'tbf'))} |"
            for check in checks
        ),
    ]


def _on_board(results: dict) -> list[str]:
    """Return the section on devices as slow as a board."""
    board = results["board"]
    macs_ms = 1000 * results["encoder_macs"] / board["macs_per_s"]
    lines = [
        "",
        f"## Devices as slow as a {board['title']}",
        "",
        f"A run of EPIC's int8 network takes {board['network']} times as long, which gains most from this machine's "
        f"vector units, all else that a device does {board['code']} times: the board against this machine, one core "
        f"each ({board['measured']}). Split's and federated's networks are slowed as common code is, which spares "
        "them. All else is as fast as here, EPIC's commit to the disk too.",
        "",
        f"Computing: for every device at most what the slowest takes, at the {board['power_w']:g} W of a busy core "
        f"above idle. EPIC's network is {results['encoder_macs'] / 1e6:.1f} million multiplications and additions, at "
        f"the board's rate on MobileNet v1 {macs_ms:.2f} ms and {macs_ms * board['power_w']:.2f} mJ a device. The "
        "table has what was timed, with companding and what a small network cannot use of a core.",
        "",
        "| link | system | encode here, ms | encode there, ms | latency there, ms | times EPIC's | computing, mJ | "
        "radio, mJ | both, times EPIC's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for link in results["links"]:
        epics = {run["system"]: run for run in as_it_is(results, link)}
        for run in as_it_is(results, link):
            there, computing_mj = run["on_board"], _computing_mj(run, board)
            cells = [
                link,
                run["system"],
                f"{run['median_ms']['encode']:.1f}",
                f"{there['median_ms']['encode']:.1f}",
                f"{there['latency_median_ms']:.1f}",
            ]
            epic = None if is_epic(run["system"]) else epics.get("epic")
            slower = epic and there["latency_median_ms"] / epic["on_board"]["latency_median_ms"]
            cells += [f"{slower:.1f}" if slower else "-", f"{computing_mj:.1f}"]
            dearer = None
            if epic and "energy_mj" in run:
                both_mj = computing_mj + run["energy_mj"]
                dearer = both_mj / (_computing_mj(epic, board) + epic["energy_mj"])
            cells += [
                f"{run['energy_mj']:,.1f}" if "energy_mj" in run else "-",
                f"{dearer:.1f}" if dearer else "-",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", against_goals_on_board(results)]
    return [*lines, "", *(f"- {source}" for source in board["sources"])]


def _computing_mj(run: dict, board: dict) -> float:
    return len(run["devices"]) * run["on_board"]["median_ms"]["encode"] * board["power_w"]


def _axes(figure, count: int) -> list:
    return list(figure.subplots(1, count, squeeze=False)[0])
