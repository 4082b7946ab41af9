"""Error of maps before and after refinement, by their latents and by their recordings.

    python benchmarks/accuracy/refine.py --data held-out [--events 20] [--iterations 20]
                                [--model models/zoo/epic-small-128]
                                [--by latents] [--by gather] [--validation]
                                [--picture refine.png] [--json]

Events are spread evenly over the families. Each map is predicted from int8 latents and refined as `epic central refine`
does, by its latents and by its recording. MAE and SSIM are the benchmark's. Latents are compared with those received,
in int8 steps (root mean square). Gathers are compared with the recording after the direct wave: root mean square of the
difference over that of the recording (benchmarks/accuracy/recording.py). `--validation` takes the validation set of
training data; settings are tuned on it, and results are measured on other data. By latents a map goes half of the way
to the least objective (models/inversion/refinement.py); "all the way" is its end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recording import after_direct_wave, misfit
from trust import Released
from velocities import draw_velocities

from firmware_py.inference.companding import dequantise, thin_samples
from models.inversion.latent_model import LatentModel
from models.inversion.refinement import LatentMisfit, refine
from models.inversion.waveform import invert
from models.networks.float_encoder import float_encoder
from models.training.run import VALIDATION_EVERY
from physics.acquisition import Acquisition
from physics.files.openfwi_files import OpenFWIPair, find_pairs
from physics.metrics import mae, ssim
from physics.modelling import model_gathers
from physics.normalise import normalise_velocity

OBJECTIVES = ("latents", "gather")
TITLES = {
    "predicted": "predicted",
    "latents": "refined by latents",
    "whole": "by latents, all the way",
    "gather": "refined by the recording",
}


@dataclass(frozen=True)
class Event:
    """A recording ``(S, T, R)``, its true map ``(nz, nx)`` in m/s, and the prediction."""

    family: str
    gather: np.ndarray
    true_mps: np.ndarray
    latents: np.ndarray
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray


class Refiner:
    def __init__(self, folder: Path) -> None:
        self.model = Released(folder)
        self.acquisition: Acquisition = self.model.decoder.acquisition
        bundle = self.model.bundle
        self.encoder = LatentModel(
            float_encoder(bundle.encoder_path.read_bytes()),
            bundle.companding,
            self.acquisition,
            np.full(bundle.output.shape[1], bundle.output.scale),
        )

    def latents(self, gather: np.ndarray) -> np.ndarray:
        """int8 ``(n_devices, latent)``."""
        decimated = thin_samples(gather, self.model.thin, axis=1).transpose(1, 2, 0)
        return self.model.latents(decimated[None])[0]

    def event(self, family: str, gather: np.ndarray, true_mps: np.ndarray) -> Event:
        latents = self.latents(gather)
        maps = self.model.decoder.decode(latents, np.ones(len(latents), bool))
        return Event(family, gather, true_mps, latents, maps[0][0], maps[1][0])

    def refine(self, event: Event, by: str, iterations: int) -> tuple[np.ndarray, int, float]:
        """The map in m/s, iterations taken, seconds."""
        began_s = time.perf_counter()
        output = self.model.bundle.output
        if by == "latents":
            received = dequantise(event.latents, output.scale, output.zero_point)
            off = LatentMisfit(self.encoder, received, np.ones(received.shape))
            found = refine(event.velocity_mps, event.uncertainty_mps, off, self.acquisition, iterations)
        else:
            found = invert(
                event.velocity_mps, event.uncertainty_mps, event.gather, self.acquisition, iterations
            )
        return found.velocity_mps, found.iterations, time.perf_counter() - began_s

    def judge(self, event: Event, velocity_mps: np.ndarray) -> dict[str, float]:
        a = self.acquisition
        drawn, true = (normalise_velocity(one, a)[None] for one in (velocity_mps, event.true_mps))
        gather = model_gathers(velocity_mps[None, None], a)[0]
        off = self.latents(gather).astype(float) - event.latents
        return {
            "mae": float(mae(drawn, true)),
            "ssim": float(ssim(drawn, true)),
            "latent_steps": float(np.sqrt(np.mean(off**2))),
            "misfit_below": misfit(gather, event.gather, after_direct_wave(event.true_mps, a)),
        }


def choose(data: list[Path], events: int, validation: bool, refiner: Refiner) -> Iterator[Event]:
    """``events`` in turn of the families, each family's spread over its files."""
    places: dict[str, list[tuple[OpenFWIPair, int]]] = {}
    for folder in data:
        for pair in find_pairs(folder, refiner.acquisition):
            n = len(pair.maps())
            kept = [i for i in range(n) if not validation or i % VALIDATION_EVERY == VALIDATION_EVERY - 1]
            places.setdefault(pair.family, []).extend((pair, i) for i in kept)
    families = sorted(places)
    turns = -(-events // len(families))
    for n in range(events):
        turn, family = divmod(n, len(families))
        some = places[families[family]]
        pair, i = some[(2 * turn + 1) * len(some) // (2 * turns)]
        gather, true = (np.asarray(array[i], np.float32) for array in (pair.gathers(), pair.maps()))
        yield refiner.event(families[family], gather, true[0])


def summary(rows: list[dict], objectives: list[str]) -> str:
    """Medians over the events, and of each event's change against its predicted map."""

    def median(name: str, figure: str) -> float:
        return float(np.median([row[name][figure] for row in rows]))

    lines = [
        "| map | MAE | change, median | mean | better in | SSIM | latents off, steps | misfit below | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [name for name in TITLES if name in rows[0]]:
        before, after = (np.array([row[one]["mae"] for row in rows]) for one in ("predicted", name))
        change = 100 * (after / before - 1)
        gain = (
            f"{np.median(change):+.1f} % | {100 * (after.mean() / before.mean() - 1):+.1f} % | "
            f"{int((after < before).sum())} of {len(rows)}"
        )
        seconds = f"{median(name, 'seconds'):.0f}" if name in objectives else ""
        lines.append(
            f"| {TITLES[name]} | {median(name, 'mae'):.4f} | {gain if name != 'predicted' else ' | | '} | "
            f"{median(name, 'ssim'):.3f} | {median(name, 'latent_steps'):.2f} | "
            f"{100 * median(name, 'misfit_below'):.0f} % | {seconds} |"
        )
    lines += ["", f"| MAE | predicted | {' | '.join(TITLES[name] for name in objectives)} |"]
    lines.append("|---" * (len(objectives) + 2) + "|")
    for family in sorted({row["family"] for row in rows}):
        means = [
            np.mean([row[name]["mae"] for row in rows if row["family"] == family])
            for name in ("predicted", *objectives)
        ]
        lines.append(f"| {family} | {' | '.join(f'{value:.4f}' for value in means)} |")
    return "\n".join(lines)


def draw(events: list[tuple[Event, list[np.ndarray]]], names: list[str], a: Acquisition, path: Path) -> None:
    """True, predicted and refined maps, an event a row."""
    rows = []
    for event, maps in events:
        true = normalise_velocity(event.true_mps, a)
        errors = [float(mae(normalise_velocity(velocity_mps, a), true)) for velocity_mps in maps]
        titles = ("predicted", *(TITLES[name] for name in names))
        drawn = [
            (f"{title}, MAE {error:.3f}", velocity_mps)
            for title, error, velocity_mps in zip(titles, errors, maps, strict=True)
        ]
        rows.append([(event.family, event.true_mps), *drawn])
    draw_velocities(rows, a, path, (2.6, 2.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--by", choices=OBJECTIVES, action="append")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--show", type=int, action="append", help="place of an event in the picture; all without"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    refiner = Refiner(given.model)
    objectives = list(given.by or OBJECTIVES)
    a, rows, drawn = refiner.acquisition, [], []
    for place, event in enumerate(choose(given.data, given.events, given.validation, refiner)):
        row: dict = {"family": event.family, "predicted": refiner.judge(event, event.velocity_mps)}
        maps = [event.velocity_mps]
        for by in objectives:
            velocity_mps, iterations, seconds = refiner.refine(event, by, given.iterations)
            row[by] = refiner.judge(event, velocity_mps) | {"iterations": iterations, "seconds": seconds}
            maps.append(velocity_mps)
            if by == "latents":
                whole = event.velocity_mps + (velocity_mps - event.velocity_mps) / LatentMisfit.share
                row["whole"] = refiner.judge(event, np.clip(whole, a.velocity_min_mps, a.velocity_max_mps))
        rows.append(row)
        if given.picture and (not given.show or place in given.show):
            drawn.append((event, maps))
            draw(drawn, objectives, a, given.picture)
        if given.json:
            print(json.dumps(row), flush=True)
    if not given.json:
        print(summary(rows, objectives))


if __name__ == "__main__":
    main()
