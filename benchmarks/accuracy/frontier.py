"""Size of a device's network against the error of its maps: the released models, side by side.

    python benchmarks/accuracy/frontier.py [--zoo models/zoo] [--out docs/images/encoders.png]

Reads what `epic convert --held-out` measured and wrote into each bundle's manifest; prints the table in Markdown,
draws it. Sizes on the axis: file and arena. The error is the worse of the two int8 arithmetics.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(zoo: Path) -> list[dict]:
    """A row for each released model, smallest file first."""
    rows = []
    for path in zoo.glob("*/bundle/manifest.json"):
        manifest = json.loads(path.read_text())
        overall = manifest["metrics"]["overall"]
        rows.append(
            {
                "name": manifest["name"],
                "latent": manifest["output"]["shape"][1],
                "file": manifest["files"]["encoder.tflite"]["bytes"],
                "arena": manifest["arena_bytes"],
                "samples": overall["n"],
                "float": overall["mae_float"],
                "int8": max(overall["mae_int8"], overall["mae_int8_micro"]),
                "families": {
                    name: (row["mae_float"], max(row["mae_int8"], row["mae_int8_micro"]), row["cost_percent"])
                    for name, row in manifest["metrics"]["families"].items()
                },
            }
        )
    return sorted(rows, key=lambda row: row["file"])


def table(rows: list[dict]) -> str:
    lines = [
        "| model | latent | file | arena | MAE float | MAE int8 | int8 costs | worst family |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        worst = max(row["families"], key=lambda name: row["families"][name][2])
        lines.append(
            f"| {row['name']} | {row['latent']} B | {row['file']:,} B | {row['arena']:,} B | {row['float']:.4f} | "
            f"{row['int8']:.4f} | {100 * (row['int8'] / row['float'] - 1):+.1f} % | "
            f"{row['families'][worst][2]:+.1f} % ({worst}) |"
        )
    lines += [
        "",
        f"| MAE int8 | {' | '.join(row['name'] for row in rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for family in rows[0]["families"]:
        errors = [f"{row['families'][family][1]:.4f}" for row in rows]
        lines.append(f"| {family} | {' | '.join(errors)} |")
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key, label in zip(
        figure.subplots(1, 2, sharey=True), ("file", "arena"), ("model file", "tensor arena"), strict=True
    ):
        sizes_kib = [row[key] / 1024 for row in rows]
        axis.plot(sizes_kib, [row["int8"] for row in rows], "o-", color="#3182bd", label="int8, on a device")
        axis.plot(
            sizes_kib, [row["float"] for row in rows], "_", color="#636363", markersize=14, label="float"
        )
        for size, row in zip(sizes_kib, rows, strict=True):
            axis.annotate(
                row["name"].removeprefix("epic-"), (size, row["int8"]), (6, 6), textcoords="offset points"
            )
        axis.set(xlabel=f"{label} (KiB)")
        axis.margins(x=0.2, y=0.2)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("MAE of held-out maps")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, default=ROOT / "models" / "zoo")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "encoders.png")
    given = parser.parse_args()
    rows = read(given.zoo)
    draw(rows, given.out)
    print(table(rows))


if __name__ == "__main__":
    main()
