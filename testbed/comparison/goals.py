"""Compute EPIC's reduction factors against the baselines, the goals met, and the main cost of each missed goal."""

from __future__ import annotations

from typing import Any

from testbed.comparison.accounting import PARTS
from testbed.comparison.run import is_epic

AS_IT_IS = "as it is"
# Goals: the paper's ratios against raw float32 (arXiv 2603.09032), and this project's against compressed samples.
GOALS = (
    ("raw", "latency", 8.9),
    ("raw", "energy", 33.8),
    ("raw-compressed", "latency", 5.0),
    ("raw-compressed", "energy", 5.0),
)
# Description of each part of EPIC's latency.
SPENT_ON = {
    "encode": "thinning, companding and the network on the device",
    "queue": "a record is written to the spool and handed to the link, without waiting for the disk",
    "assemble": "the centre commits the records and collects those of the event, while its disk writes them",
    "decode": "the network that predicts the map and its uncertainty",
}


def as_it_is(results: dict, link: str) -> list[dict]:
    """Return the runs over a link without added loss or missing devices."""
    return [run for run in results["runs"] if run["link"] == link and run["condition"] == AS_IT_IS]


def ratios(results: dict) -> list[dict]:
    """Return the reduction factors of EPIC, at each rate, against each baseline, without added loss."""
    rows = []
    for link in results["links"]:
        runs = as_it_is(results, link)
        for epic in (run for run in runs if is_epic(run["system"])):
            rows += [_row(link, epic, run) for run in runs if not is_epic(run["system"])]
    return rows


def _row(link: str, epic: dict, run: dict) -> dict[str, Any]:
    row = {"link": link, "system": epic["system"], "against": run["system"]}
    for name, key in (
        ("latency", "latency_median_ms"),
        ("socket_bytes_up", "socket_bytes_up"),
        ("link_bytes", "link_bytes"),
        ("energy", "energy_mj"),
        ("energy_with_tail", "energy_with_tail_mj"),
    ):
        if run.get(key) and epic.get(key):
            row[name] = round(run[key] / epic[key], 2)
    if "on_board" in run:
        slow = run["on_board"]["latency_median_ms"]
        row["latency_on_board"] = round(slow / epic["on_board"]["latency_median_ms"], 2)
    return row


def against_goals(results: dict) -> str:
    """List goals missed or not measured, with devices as fast as this machine."""
    asked = "Asked for: latency 8.9 and energy while bytes pass 33.8 against raw, 5 for both against raw-compressed."
    return f"{asked} {_standing(results, on_board=False)} Devices are as fast as this machine."


def against_goals_on_board(results: dict) -> str:
    """List latency goals missed or not measured, with devices as slow as the board."""
    return f"Of the goals of latency: {_standing(results, on_board=True)} Devices are as slow as the board."


def _standing(results: dict, on_board: bool) -> str:
    found = {(row["link"], row["against"]): row for row in ratios(results) if row["system"] == "epic"}
    missed, unmeasured = [], []
    for link in results["links"]:
        for against, name, goal in GOALS:
            if on_board and name != "latency":
                continue
            ratio = found.get((link, against), {}).get("latency_on_board" if on_board else name)
            line = f"{name} against {against} on {link}"
            if ratio is None:
                unmeasured.append(line)
            elif ratio < goal:
                costs = _costs(results, link, against, goal, on_board) if name == "latency" else ""
                missed.append(f"{line}, {ratio}{costs}")
    if not missed and not unmeasured:
        return "All are reached."
    parts = [f"Not reached: {'; '.join(missed)}."] if missed else []
    return " ".join([*parts, *([f"Not measured: {'; '.join(unmeasured)}."] if unmeasured else [])])


def _costs(results: dict, link: str, against: str, goal: float, on_board: bool) -> str:
    """Name the part that contributes most to a missed latency goal, and whether the link allows the goal at all."""
    runs = {run["system"]: run["on_board"] if on_board else run for run in as_it_is(results, link)}
    epic, total_ms = runs["epic"]["median_ms"], runs["epic"]["latency_median_ms"]
    wanted_ms = runs[against]["latency_median_ms"] / goal
    part = max(PARTS, key=epic.__getitem__)
    line = f" (most of EPIC's {total_ms} ms is {part}, {epic[part]} ms; the goal is {wanted_ms:.1f} ms"
    way_ms = 1000 * results["links"][link]["delay_s"]
    if wanted_ms < way_ms:
        line += f", less than the {way_ms:g} ms that the first bit takes on this link: nothing that sends reaches it"
    return line + ")"


def where_time_goes(results: dict) -> list[str]:
    """Describe EPIC's latency on each link part by part, and that of the baselines; Markdown."""
    lines = []
    for link in results["links"]:
        runs = {run["system"]: run for run in as_it_is(results, link)}
        if "epic" not in runs:
            continue
        way_ms = 1000 * results["links"][link]["delay_s"]
        spent_on = SPENT_ON | {"link": f"{way_ms:g} ms of it is the link's own delay"}
        epic = runs["epic"]["median_ms"]
        parts = [
            f"{part} {epic[part]:.1f} ({spent_on[part]})"
            for part in sorted(PARTS, key=lambda part: -epic[part])
        ]
        lines.append(
            f"- On {link}, of EPIC's {runs['epic']['latency_median_ms']:.1f} ms: {'; '.join(parts)}."
        )
        if "raw-compressed" in runs:
            other = runs["raw-compressed"]
            of_link, of_decode = other["median_ms"]["link"], other["median_ms"]["decode"]
            lines[-1] += (
                f" Of raw-compressed's {other['latency_median_ms']:.1f} ms, its bytes cost {of_link:.1f} on the link, "
                f"and its larger network {of_decode:.1f} to predict the map."
            )
    return ["Where the time goes, in medians of each part (ms):", "", *lines] if lines else []
