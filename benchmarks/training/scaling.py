"""Validation error against processor time and against samples seen, for chains of training runs.

    python benchmarks/training/scaling.py --chain EPIC 11355 0.32 RUN RUN RUN --chain InversionNet 0 3.6 RUN
                                 [--picture scaling.png] [--json]

Each chain has a name, the steps taken before its first run, the core-seconds of a step and its runs. The core-seconds
are `core_s` / `step` of a run's metrics.json, one value or one for each run (3.4,4.9); wall-clock time says little on a
shared machine. Each run starts with the weights of the previous one. The learning rate of every run falls to zero, so
only the last point of each run is a finished network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def read_chain(name: str, steps_before: int, step_core_s: list[float], runs: list[Path]) -> dict:
    """Return steps, samples, core minutes and validation MAE at each report, and the reports that ended a run.

    ``step_core_s`` has a value for each run; the first one also holds for the steps before the chain.
    """
    steps, samples, minutes = [], [], []
    maes: list[float] = []
    ends = []
    start, seen, spent = steps_before, None, steps_before * step_core_s[0] / 60
    for run, core_s in zip(runs, step_core_s, strict=True):
        batch = json.loads((run / "config.json").read_text())["budget"]["batch"]
        seen = start * batch if seen is None else seen
        rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "validation_mae" in row]
        steps += [start + row["step"] for row in rows]
        samples += [seen + row["step"] * batch for row in rows]
        minutes += [spent + row["step"] * core_s / 60 for row in rows]
        maes += [row["validation_mae"] for row in rows]
        ends.append(len(maes) - 1)
        start, seen, spent = steps[-1], samples[-1], minutes[-1]
    return {
        "name": name,
        "steps": steps,
        "samples": samples,
        "core_minutes": minutes,
        "mae": maes,
        "ends": ends,
    }


def draw(chains: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter

    figure, both = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    for axes, what, label in zip(
        both, ("core_minutes", "samples"), ("core minutes", "samples seen"), strict=True
    ):
        for chain in chains:
            (line,) = axes.plot(chain[what], chain["mae"], label=chain["name"])
            ends = chain["ends"]
            axes.plot(
                [chain[what][i] for i in ends],
                [chain["mae"][i] for i in ends],
                "o",
                color=line.get_color(),
                markersize=5,
            )
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.yaxis.set_major_locator(FixedLocator([0.1, 0.15, 0.2, 0.3, 0.4, 0.6]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    both[0].set_ylabel("MAE of the validation set (1 is 1500 m/s)")
    both[1].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--chain", nargs="+", action="append", required=True, metavar="NAME STEPS_BEFORE CORE_S RUN"
    )
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if any(len(chain) < 4 for chain in given.chain):
        parser.error(
            "a chain has a name, the steps before it, the core-seconds of a step, and one run or more"
        )
    chains = []
    for name, before, core_s, *runs in given.chain:
        each = [float(one) for one in core_s.split(",")]
        if len(each) not in (1, len(runs)):
            parser.error(f"{name}: expected the core-seconds of a step once or for each of {len(runs)} runs")
        chains.append(
            read_chain(name, int(before), each * (len(runs) // len(each)), [Path(run) for run in runs])
        )
    if given.picture:
        draw(chains, given.picture)
    if given.json:
        print(json.dumps(chains))
        return
    for chain in chains:
        for i in chain["ends"]:
            print(
                f"{chain['name']:<16} {chain['steps'][i]:>7,} steps {chain['samples'][i]:>9,} samples "
                f"{chain['core_minutes'][i]:>6.1f} core minutes  MAE {chain['mae'][i]:.4f}"
            )


if __name__ == "__main__":
    main()
