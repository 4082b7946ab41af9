"""Waveform inversion of recordings: error of the map against iterations and core seconds, beside the predicted map.

    python benchmarks/accuracy/definitive.py --maps maps.npz [--pick NAME:INDEX ...] [--iterations 500]
                                             [--noise 0.01] [--prior blocky] [--model models/zoo/epic-small-128]
                                             [--work FOLDER]
    python benchmarks/accuracy/definitive.py --data test-set [--events 20] ...

maps.npz holds arrays (n, nz, nx) of velocity in m/s, one a family. The gather of each map is modelled with the
benchmark's scheme. --data takes samples of OpenFWI files, evenly from all families. --noise adds white noise of that
share of the gather's root mean square, and the released model predicts the first map from int8 latents. The table's
seconds are processor time of this process on one thread. --work keeps the maps of each inversion; an interrupted run
is resumed in its folder with the same options. After a change of the code, take another folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from refine import Event, Refiner, choose
from resume import claim

from models.inversion.waveform import PRIORS, invert
from physics.files.atomic import atomic_write
from physics.modelling import model_gathers


@dataclass(frozen=True)
class Inverted:
    """Maps ``(nz, nx)`` in m/s of one inversion, and what it took; ``misfit`` is before and after."""

    true_mps: np.ndarray
    predicted_mps: np.ndarray
    predicted_uncertainty_mps: np.ndarray
    velocity_mps: np.ndarray
    uncertainty_mps: np.ndarray
    misfit: np.ndarray
    iterations: int
    seconds: float

    @property
    def error_mps(self) -> tuple[float, float]:
        """Return the mean absolute errors of the predicted and the inverted map."""
        before, after = (np.abs(v - self.true_mps).mean() for v in (self.predicted_mps, self.velocity_mps))
        return float(before), float(after)

    @classmethod
    def of_event(cls, event: Event, refiner: Refiner, iterations: int, prior: str) -> Inverted:
        began_s = time.process_time()
        found = invert(
            event.velocity_mps,
            event.uncertainty_mps,
            event.gather,
            refiner.acquisition,
            iterations,
            prior=prior,
        )
        return cls(
            true_mps=event.true_mps,
            predicted_mps=event.velocity_mps,
            predicted_uncertainty_mps=event.uncertainty_mps,
            velocity_mps=found.velocity_mps,
            uncertainty_mps=found.uncertainty_mps,
            misfit=np.array(found.misfit),
            iterations=found.iterations,
            seconds=time.process_time() - began_s,
        )


def picked(given: argparse.Namespace, refiner: Refiner) -> Iterator[tuple[str, Event]]:
    """Yield the events of --maps with their names."""
    maps = np.load(given.maps)
    for name in given.pick or [f"{family}:0" for family in maps.files]:
        family, index = name.split(":")
        true_mps = np.asarray(maps[family][int(index)], np.float32).reshape(refiner.acquisition.map_shape[1:])
        gather = model_gathers(true_mps[None, None], refiner.acquisition)[0]
        yield name, noisy(refiner.event(family, gather, true_mps), given.noise, int(index), refiner)


def drawn(given: argparse.Namespace, refiner: Refiner) -> Iterator[tuple[str, Event]]:
    """Yield --events events of --data with their names."""
    for number, event in enumerate(choose([given.data], given.events, False, refiner)):
        yield f"{event.family}:{number}", noisy(event, given.noise, number, refiner)


def noisy(event: Event, share: float, seed: int, refiner: Refiner) -> Event:
    if share == 0.0:
        return event
    noise = np.random.default_rng(seed).normal(size=event.gather.shape)
    strength = share * float(np.sqrt(np.mean(np.square(event.gather))))
    return refiner.event(
        event.family, event.gather + np.float32(strength) * noise.astype(np.float32), event.true_mps
    )


def kept(work: Path | None, name: str, make: Callable[[], Inverted]) -> Inverted:
    """Return what ``work`` holds under a name, else what ``make()`` returns, which is kept there."""
    path = work / f"{name.replace(':', '-')}.npz" if work else None
    if path is not None and path.exists():
        with np.load(path) as held:
            return Inverted(**{key: value if value.ndim else value.item() for key, value in held.items()})
    found = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, ".npz") as temporary:
            np.savez_compressed(temporary, **asdict(found))
    return found


def row(name: str, found: Inverted) -> str:
    before, after = found.error_mps
    return (
        f"| {name} | {before:.1f} | {after:.1f} | {100 * after / before:.0f} % | {found.iterations} | "
        f"{found.seconds:.0f} | {found.misfit[0]:.3f} to {found.misfit[1]:.4f} | "
        f"{float(found.uncertainty_mps.mean()) / after:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--maps", type=Path)
    source.add_argument("--data", type=Path)
    parser.add_argument("--pick", action="append", help="family:index; the first map of each family without")
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--prior", choices=tuple(PRIORS), default="blocky")
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    parser.add_argument("--work", type=Path, help="folder that keeps the maps")
    given = parser.parse_args()
    if given.work:
        names = ("maps", "data", "events", "iterations", "noise", "prior", "model")
        claim(given.work, **{name: getattr(given, name) for name in names})
    refiner = Refiner(given.model)
    print(
        "| map | predicted, m/s | inverted, m/s | share | iterations | core s | misfit | uncertainty / error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    shares = []
    for name, event in picked(given, refiner) if given.maps else drawn(given, refiner):

        def make(event: Event = event) -> Inverted:
            return Inverted.of_event(event, refiner, given.iterations, given.prior)

        found = kept(given.work, name, make)
        print(row(name, found), flush=True)
        before, after = found.error_mps
        shares.append(after / before)
    better = int(np.sum(np.array(shares) < 1.0))
    print(
        f"\nmedian error {100 * np.median(shares):.0f} % of the prediction's, better on {better} of {len(shares)}"
    )


if __name__ == "__main__":
    main()
