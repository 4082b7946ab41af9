"""Map error for every subset of devices, of a released model in int8 or a run in float.

python benchmarks/accuracy/missing.py --data held-out [--model models/zoo/epic-small-128 | --model RUN] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from trust import Released

from models.data.gathers import load_decimated
from models.evaluation.evaluate import load_run

Draw = Callable[[np.ndarray], np.ndarray]


def benchmark(folder: Path, data: list[Path]) -> list[dict]:
    """Return the MAE (1 is half the velocity range) for each set of ``missing`` devices, fewest first."""
    maps, draw, n = _released(folder, data) if (folder / "bundle").exists() else _trained(folder, data)
    rows = []
    for missing in (subset for size in range(n) for subset in combinations(range(n), size)):
        present = np.ones((len(maps), n), bool)
        present[:, list(missing)] = False
        rows.append({"missing": list(missing), "mae": float(np.abs(draw(present) - maps).mean())})
    return rows


def _released(folder: Path, data: list[Path]) -> tuple[np.ndarray, Draw, int]:
    """Return true maps ``(n, nz, nx)``, a function from a mask ``(n, n_devices)`` to maps, and ``n_devices``."""
    model = Released(folder)
    held_out = load_decimated(data, model.decoder.acquisition, model.thin)
    latents = model.latents(held_out.gathers)
    return held_out.maps, lambda present: model.maps(latents, present)[0], model.decoder.n_devices


def _trained(run: Path, data: list[Path]) -> tuple[np.ndarray, Draw, int]:
    """Return the same for a run of `epic train epic`, with its float latents."""
    found = load_run(run, data)
    a = found.held_out.acquisition
    encoder, decoder = found.parts["encoder"], found.parts["decoder"]
    inputs, _ = found.batches.plain(np.arange(len(found.held_out)))
    parts = inputs["parts"]
    latents = encoder.predict(parts.reshape(-1, *parts.shape[2:]), batch_size=100, verbose=0)
    given = {
        "latents": latents.reshape(*parts.shape[:2], -1),
        "positions": np.repeat(a.device_positions()[None], len(parts), axis=0),
    }

    def draw(present: np.ndarray) -> np.ndarray:
        drawn = decoder.predict({**given, "mask": present.astype(np.float32)}, batch_size=50, verbose=0)
        return np.clip(drawn["velocity"][..., 0], -1.0, 1.0)

    return found.held_out.maps, draw, a.n_devices


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
