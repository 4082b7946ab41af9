"""Bytes against map error: the released models, their latents in fewer bits, and raw gathers to a central InversionNet.

    python benchmarks/rate.py --data held-out [--model models/zoo/epic-small-128 ...] [--baseline RUN]
                              [--picture rate.png] [--json]

Bytes are a device's payload for one event, without headers. Fewer bits are the top ones of each int8 value, with the
middle of what was cut off in their place; nothing is trained for them. Raw samples are float32, int16 of the part's own
peak, and the testbed's lossless coding of that; their error is that of BASELINE, a run of `epic train inversionnet`,
which sees float32 in each case.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from trust import Released

from models.data import load_thinned
from models.evaluate import evaluate_run
from physics.acquisition import Acquisition
from physics.openfwi_files import find_pairs
from testbed.schemes import compress_part

BITS = (8, 7, 6, 5, 4, 3, 2)
# Of each file, for the mean size of a part that is compressed.
COMPRESSED = 6


def with_bits(latents: np.ndarray, bits: int) -> np.ndarray:
    """int8 latents as a device that sends their top ``bits`` gives them, and the centre reads them."""
    width = 1 << (8 - bits)
    return ((latents.astype(np.int16) // width) * width + width // 2).astype(np.int8)


def of_model(folder: Path, data: list[Path]) -> list[dict]:
    model = Released(folder)
    held_out = load_thinned(data, model.decoder.acquisition, model.thin)
    latents = model.latents(held_out.gathers)
    rows = []
    for bits in BITS:
        velocity, _ = model.maps(with_bits(latents, bits))
        mae = float(np.abs(velocity - held_out.maps).mean())
        rows.append({"what": folder.name, "bits": bits, "bytes": model.decoder.latent * bits / 8, "mae": mae})
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
    return [{"what": name, "bits": None, "bytes": size, "mae": mae} for name, size in sizes.items()]


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name in dict.fromkeys(row["what"] for row in rows if row["mae"] is not None):
        mine = [row for row in rows if row["what"] == name]
        axes.plot([r["bytes"] for r in mine], [r["mae"] for r in mine], marker="o", markersize=4, label=name)
        for row in mine:
            if row["bits"] in (8, 4):
                axes.annotate(
                    f"{row['bits']} bits",
                    (row["bytes"], row["mae"]),
                    (4, 5),
                    textcoords="offset points",
                    fontsize=7,
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
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    models = given.model or [Path("models/zoo/epic-small-128")]
    rows = [row for folder in models for row in of_model(folder, given.data)] + of_raw(
        given.data, given.baseline
    )
    if given.picture:
        draw(rows, given.picture)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        bits = f", {row['bits']} bits" if row["bits"] else ""
        mae = "-" if row["mae"] is None else f"{row['mae']:.4f}"
        print(f"{row['what'] + bits:<28} {row['bytes']:>9.0f} bytes  MAE {mae}")
    whole = next(row for row in rows if row["bits"] == 8)
    print(
        f"{rows[-3]['bytes'] / whole['bytes']:.0f} times fewer bytes than float32, "
        f"{rows[-1]['bytes'] / whole['bytes']:.0f} times fewer than what is compressed without loss"
    )


if __name__ == "__main__":
    main()
