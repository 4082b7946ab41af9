"""A map of whatever devices are heard: the error of every subset, with a released model's int8 latents.

python benchmarks/missing.py --data held-out [--model models/zoo/epic-small-128] [--json]
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from trust import Released

from models.data import load_thinned


def benchmark(folder: Path, data: list[Path]) -> list[dict]:
    """MAE (1 is half the velocity range) of each set of ``missing`` devices, the fewest first."""
    model = Released(folder)
    n = model.decoder.n_devices
    held_out = load_thinned(data, model.decoder.acquisition, model.thin)
    latents = model.latents(held_out.gathers)
    rows = []
    for missing in (subset for size in range(n) for subset in combinations(range(n), size)):
        present = np.ones(latents.shape[:2], bool)
        present[:, list(missing)] = False
        drawn, _ = model.maps(latents, present)
        rows.append({"missing": list(missing), "mae": float(np.abs(drawn - held_out.maps).mean())})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = benchmark(given.model, given.data)
    if given.json:
        print(json.dumps(rows))
        return
    whole = rows[0]["mae"]
    for size in sorted({len(row["missing"]) for row in rows}):
        of_size = sorted((row for row in rows if len(row["missing"]) == size), key=lambda row: row["mae"])
        best, worst = of_size[0], of_size[-1]
        mean = float(np.mean([row["mae"] for row in of_size]))
        print(
            f"{size} missing, {len(of_size):>2} sets: MAE {mean:.4f} ({mean / whole - 1:+.1%}); best without "
            f"{best['missing']} {best['mae']:.4f}, worst without {worst['missing']} {worst['mae']:.4f}"
        )
    one = max(row["mae"] for row in rows if len(row["missing"]) == 1)
    print(f"any one device missing costs at most {one / whole - 1:.1%}")


if __name__ == "__main__":
    main()
