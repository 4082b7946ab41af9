"""Bytes against map error: the released models, their latents in fewer bits, and raw gathers to a central InversionNet.

    python benchmarks/accuracy/rate.py --data held-out [--model models/zoo/epic-small-128 ...] [--baseline RUN]
                              [--validation] [--picture rate.png] [--json]

Bytes are a device's payload for one event, without headers; all devices send at one rate. Lower rates send the top bits
of each int8 value, which the centre reads as the middle of the step. A nested latent is also cut to its first half,
quarter and eighth, in 8 and in 4 bits; the zero point replaces the other values. ``--validation`` measures on the
validation set of training data (every fiftieth sample), by which choices are made.

Raw samples are float32, int16 of the part's own peak, and the testbed's lossless coding of that; their error is that of
BASELINE, a run of `epic train inversionnet`, which sees float32 in each case.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released

from models.data.gathers import load_decimated
from models.evaluation.evaluate import evaluate_run
from models.networks.nested_latent import prefixes
from models.training.run import split_validation
from physics.acquisition import Acquisition
from physics.files.openfwi_files import find_pairs
from testbed.comparison.baselines import compress_part

BITS = (8, 7, 6, 5, 4, 3, 2)
PREFIX_BITS = (8, 4)
# Gathers of each file that are compressed, for the mean size of a part.
COMPRESSED = 6


def with_bits(latents: np.ndarray, bits: int) -> np.ndarray:
    """Return int8 latents as the centre reads them when a device sends the top ``bits`` of each value."""
    width = 1 << (8 - bits)
    return ((latents.astype(np.int16) // width) * width + width // 2).astype(np.int8)


def of_model(folder: Path, data: list[Path], of_validation_set: bool) -> list[dict]:
    model = Released(folder)
    samples = load_decimated(data, model.decoder.acquisition, model.thin)
    chosen = split_validation(len(samples))[0] if of_validation_set else np.arange(len(samples))
    latents, maps = model.latents(samples.gathers[chosen]), samples.maps[chosen]
    coding = model.decoder.coding
    rates = [(f"{folder.name}, all values in 8 to 2 bits", coding.latent, bits) for bits in BITS]
    if coding.prefixes:
        rates += [
            (f"{folder.name}, first values in {bits} bits", values, bits)
            for bits in PREFIX_BITS
            for values in prefixes(coding.latent)
        ]
    rows = []
    for name, values, bits in rates:
        sent = with_bits(latents, bits)
        sent[..., values:] = coding.zero_point
        velocity, _ = model.maps(sent)
        mae = float(np.abs(velocity - maps).mean())
        rows.append({"what": name, "values": values, "bits": bits, "bytes": values * bits / 8, "mae": mae})
    return rows


def of_raw(data: list[Path], baseline: Path | None) -> list[dict]:
    a = Acquisition.openfwi()
    parts = [
        np.asarray(gather[:, :, list(group)], np.float32)
        for folder in data
        for pair in find_pairs(folder, a)
        for gather in pair.gathers()[:COMPRESSED]
        for group in a.device_receivers
    ]
    mae = evaluate_run(baseline, data)["all"]["mae"] if baseline else None
    samples = parts[0].size
    sizes = {
        "raw float32": 4.0 * samples,
        "raw int16": 2.0 * samples,
        "raw int16, zstd": float(np.mean([len(compress_part(part)) for part in parts])),
    }
    return [
        {"what": name, "values": None, "bits": None, "bytes": size, "mae": mae}
        for name, size in sizes.items()
    ]


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name in dict.fromkeys(row["what"] for row in rows if row["mae"] is not None):
        mine = [row for row in rows if row["what"] == name]
        axes.plot([r["bytes"] for r in mine], [r["mae"] for r in mine], marker="o", markersize=4, label=name)
        if mine[0]["values"] == mine[-1]["values"] and mine[0]["bits"]:
            for row in (mine[0], next(r for r in mine if r["bits"] == 4)):
                note = f"{row['bits']} bits"
                axes.annotate(
                    note, (row["bytes"], row["mae"]), (4, 5), textcoords="offset points", fontsize=7
                )
    axes.set(xscale="log", xlabel="bytes a device and event", ylabel="MAE on held-out data (1 is 1500 m/s)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", type=Path, action="append")
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    models = given.model or [Path("models/zoo/epic-small-128")]
    rows = [row for folder in models for row in of_model(folder, given.data, given.validation)]
    if not given.validation:
        rows += of_raw(given.data, given.baseline)
    if given.picture:
        draw(rows, given.picture)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        sent = f"{row['values']} x {row['bits']} bits" if row["bits"] else ""
        mae = "-" if row["mae"] is None else f"{row['mae']:.4f}"
        print(f"{row['what']:<42} {sent:<12} {row['bytes']:>9.0f} bytes  MAE {mae}")
    if given.validation:
        return
    whole = next(row for row in rows if row["bits"] == 8)
    print(
        f"{rows[-3]['bytes'] / whole['bytes']:.0f} times fewer bytes than float32, "
        f"{rows[-1]['bytes'] / whole['bytes']:.0f} times fewer than what is compressed without loss"
    )


if __name__ == "__main__":
    main()
