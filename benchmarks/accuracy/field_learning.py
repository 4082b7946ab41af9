"""How much a decoder gains by adapting to its survey in the field: error against the true maps after each round.

    python benchmarks/accuracy/field_learning.py --work FOLDER [--events 50 ...] [--rounds 2] [--minutes 5]
                                                 [--recorded 0 --recorded 0.05] [--label true] [--iterations 500]
                                                 [--original DATA ...] [--originals 500] [--tests 64] [--fresh 40]
                                                 [--batch 32] [--model models/zoo/epic-small-128]

The survey's ground is salt bodies in dipping beds, a family that is defined here and in no training set. Its events go
through the store of a centre, and `epic central adapt`'s own code learns from it: latents alone, or with a share of
the events' recordings fetched. With `--label refined` their maps are inverted from the recordings, as `epic central
refine --gather` does; with `--label true` they are the true maps, an upper bound of what recordings give. Errors are of
fresh events that the decoder has never seen, and of the survey's own. An interrupted run is resumed
in its folder with the same options.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from resume import claim

from central.config import ModelSection
from central.learning.adapt import Learning, Settings, work_folder
from central.learning.events import read_events
from central.learning.gate import choose_round
from central.pipeline.decoders import open_release
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from firmware_py.inference.bundle import Bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from models.inversion.decoder import Decoder, load_decoder
from models.inversion.waveform import invert
from physics.acquisition import Acquisition
from physics.families.family import FRAME_CELLS, Frame
from physics.families.shapes import random_waves
from physics.files.atomic import atomic_write
from physics.modelling import model_gathers

SURVEY_SEED, FRESH_SEED = 31, 32
SALT_MPS = 4450.0
SAMPLE_TIME_US = 1_700_000_000_000_000


def draw_salt(seed: int, index: int, acquisition: Acquisition) -> np.ndarray:
    """Draw beds that dip by 8 to 30 degrees, with one or two bodies of salt ``(nz, nx)`` in m/s."""
    rng = np.random.default_rng([seed, index])
    frame = Frame.of_grid(acquisition.n_depth, acquisition.n_width)
    slope = np.tan(np.deg2rad(rng.uniform(8.0, 30.0))) * rng.choice((-1.0, 1.0))
    bend = 1.5 * random_waves(rng, frame.z, frame.x, 6, (0.04, 0.06))
    depth = frame.z + slope * (frame.x - FRAME_CELLS / 2) + bend
    thickness = rng.uniform(5.0, 14.0, 24)
    tops = np.cumsum(thickness) - 0.5 * thickness.sum() + FRAME_CELLS / 2
    bed = np.searchsorted(tops, depth)
    speeds_mps = (
        1650.0 + 1900.0 * np.linspace(0.0, 1.0, len(tops) + 1) + rng.normal(0.0, 160.0, len(tops) + 1)
    )
    velocity_mps = speeds_mps[bed]
    for _ in range(int(rng.integers(1, 3))):
        centre_z, centre_x = rng.uniform(25.0, 55.0), rng.uniform(10.0, 60.0)
        half_z, half_x = rng.uniform(6.0, 14.0), rng.uniform(7.0, 18.0)
        ragged = 0.15 * random_waves(rng, frame.z, frame.x, 8, (0.25, 0.25))
        away = np.hypot((frame.z - centre_z) / half_z, (frame.x - centre_x) / half_x) + ragged
        velocity_mps = np.where(away < 1.0, SALT_MPS, velocity_mps)
    return np.clip(velocity_mps, acquisition.velocity_min_mps, acquisition.velocity_max_mps).astype(
        np.float32
    )


@dataclass(frozen=True)
class Ground:
    """Events with their truth: maps ``(n, nz, nx)`` in m/s, gathers ``(n, S, T, R)``, int8 latents."""

    maps_mps: np.ndarray
    gathers: np.ndarray
    latents: np.ndarray

    def first(self, count: int) -> Ground:
        return Ground(self.maps_mps[:count], self.gathers[:count], self.latents[:count])


def make_ground(seed: int, count: int, bundle: Bundle, acquisition: Acquisition, folder: Path) -> Ground:
    """Draw, model and encode events; cache each gather in ``folder``, so that an interrupted run can resume."""
    encoder = Encoder(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    maps_mps, gathers, latents = [], [], []
    for index in range(count):
        path = folder / f"{seed}-{index}.npy"
        map_mps = draw_salt(seed, index, acquisition)
        if not path.exists():
            gather = model_gathers(map_mps[None, None], acquisition)[0]
            with atomic_write(path, ".npy") as temporary:
                np.save(temporary, gather)
        gather = np.load(path)
        maps_mps.append(map_mps)
        gathers.append(gather)
        parts = [gather[:, :, list(group)] for group in acquisition.device_receivers]
        latents.append([encoder.encode_recording(part) for part in parts])
    return Ground(np.stack(maps_mps), np.stack(gathers), np.array(latents))


def predict(decoder: Decoder, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocity and uncertainty ``(n, nz, nx)`` in m/s."""
    velocity, uncertainty = decoder.decode_batch(latents, np.ones(latents.shape[:2], bool))
    return velocity[:, 0], uncertainty[:, 0]


def fill_store(
    data_dir: Path, ground: Ground, bundle: Bundle, decoder: Decoder, labels: dict[int, np.ndarray]
) -> None:
    """Store the events as a centre does; ``labels`` are the refined maps of fetched events, by event number."""
    journal, store = Journal(data_dir), Store(data_dir)
    velocity_mps, uncertainty_mps = predict(decoder, ground.latents)
    for event, latents in enumerate(ground.latents):
        records = [
            packet.Record(
                packet.LATENT,
                device,
                1,
                1,
                event + 1,
                event,
                model_hash=bundle.model_hash,
                payload=latent.tobytes(),
            )
            for device, latent in enumerate(latents)
        ]
        last = journal.commit([(record, SAMPLE_TIME_US, 100) for record in records]).new[-1].id
        provenance = {
            "acquisition": decoder.acquisition.to_dict(),
            "decoded_us": SAMPLE_TIME_US + event,
        }
        key = (1, event, bundle.model_hash)
        entries = [NewMap(key, last, False, velocity_mps[event], uncertainty_mps[event], provenance)]
        if event in labels:
            refined = {**provenance, "refinement": {"by": "gather"}}
            entries.append(NewMap(key, last, False, labels[event], uncertainty_mps[event], refined))
        store.put(entries)
    journal.close()
    store.close()


def make_labels(
    ground: Ground, share: float, label: str, iterations: int, decoder: Decoder, folder: Path
) -> dict[int, np.ndarray]:
    """Return the label maps of the fetched events, by event number; they are spread evenly over the training events.

    ``folder`` keeps each inverted map, so that an interrupted run can resume.
    """
    trained_on = [i for i in range(len(ground.maps_mps)) if i % 5 != 4]
    count = round(share * len(ground.maps_mps))
    chosen = [trained_on[i] for i in np.linspace(0, len(trained_on) - 1, count).astype(int)] if count else []
    if label == "true" or not chosen:
        return {i: ground.maps_mps[i] for i in chosen}
    velocity_mps, uncertainty_mps = predict(decoder, ground.latents)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for i in chosen:
        path = folder / f"{i}-{iterations}.npy"
        if not path.exists():
            found = invert(
                velocity_mps[i], uncertainty_mps[i], ground.gathers[i], decoder.acquisition, iterations
            )
            with atomic_write(path, ".npy") as temporary:
                np.save(temporary, found.velocity_mps)
        labels[i] = np.load(path)
    before, after = (
        np.mean([np.abs(maps[i] - ground.maps_mps[i]).mean() for i in chosen])
        for maps in (velocity_mps, labels)
    )
    print(f"{len(chosen)} labels by inversion: {before:.1f} m/s predicted, {after:.1f} inverted", flush=True)
    return labels


@dataclass(frozen=True)
class Benchmark:
    """The released model, its decoder ``parent``, the fresh events, and the options."""

    given: argparse.Namespace
    release: ModelSection
    bundle: Bundle
    parent: Decoder
    fresh: Ground

    def run_case(self, some: Ground, share: float) -> float:
        """Adapt to ``some`` events, a ``share`` of them with recordings; return the gain on fresh events in percent.

        Prints a row of the table for each decoder.
        """
        count = len(some.maps_mps)
        folder = self.given.work / f"{count}-{share:g}-{self.given.label}"
        data_dir = folder / "data"
        work = work_folder(data_dir)
        self._fill(folder, some, share)
        events = read_events(data_dir, self.bundle, self.parent.acquisition, None, count)
        self._link_samples(work)
        before, rounds = Learning(
            data_dir,
            events,
            self._settings(),
            self.bundle,
            self.parent,
            self.release,
            lambda what, share: None,
        ).run()
        chosen, reason = choose_round(before, rounds)
        errors = []
        decoders = [self.release.decoder, *(work / f"round-{k + 1}" / "decoder" for k in range(len(rounds)))]
        for k, (decoder, figures) in enumerate(zip(decoders, [before, *rounds], strict=True)):
            of_fresh, of_own = self._errors_mps(load_decoder(decoder), some)
            errors.append(of_fresh)
            name = f"round {k}" + (", chosen" if chosen == k - 1 and k else "") if k else "released"
            print(
                f"| {count} | {len(events.kind[events.kind > 0])} | {name} | {of_fresh:.1f} | "
                f"{100 * (of_fresh / errors[0] - 1):+.1f} % | {of_own:.1f} | {figures.test_mae:.4f} | "
                f"{figures.distance:.3f} |",
                flush=True,
            )
        if chosen is None:
            print(f"\nrejected by the gate: {reason}\n", flush=True)
        result = {
            "errors_mps": errors,
            "chosen": chosen,
            "figures": [asdict(one) for one in (before, *rounds)],
        }
        (folder / "figures.json").write_text(json.dumps(result, indent=2))
        return 0.0 if chosen is None else 100 * (1 - errors[chosen + 1] / errors[0])

    def _fill(self, folder: Path, some: Ground, share: float) -> None:
        """Store the events in ``folder``, unless an earlier run did."""
        if (folder / "stored").exists():
            return
        given = self.given
        labels = make_labels(some, share, given.label, given.iterations, self.parent, given.work / "labels")
        # Events that an interrupted run stored would be repeats.
        shutil.rmtree(folder / "data", ignore_errors=True)
        fill_store(folder / "data", some, self.bundle, self.parent, labels)
        (folder / "stored").touch()

    def _link_samples(self, work: Path) -> None:
        """Link the drawn samples into a case's work folder; all cases share them."""
        work.mkdir(parents=True, exist_ok=True)
        for name in ("test", "original"):
            (self.given.work / name).mkdir(exist_ok=True)
            if not (work / name).exists():
                (work / name).symlink_to((self.given.work / name).resolve())

    def _settings(self) -> Settings:
        return Settings(
            rounds=self.given.rounds,
            minutes=self.given.minutes,
            original=tuple(self.given.original),
            originals=self.given.originals,
            tests=self.given.tests,
            batch=self.given.batch,
            learning_rate=self.given.learning_rate,
        )

    def _errors_mps(self, decoder: Decoder, some: Ground) -> tuple[float, float]:
        """Return the mean absolute errors on the fresh events and on ``some``, in m/s."""
        of_fresh, of_own = (
            float(np.abs(predict(decoder, part.latents)[0] - part.maps_mps).mean())
            for part in (self.fresh, some)
        )
        return of_fresh, of_own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--events", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--recorded", type=float, action="append", help="share of the events; 0 and 0.05")
    parser.add_argument("--label", choices=("true", "refined"), default="true")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--original", type=Path, action="append", default=[])
    parser.add_argument("--originals", type=int, default=500)
    parser.add_argument("--tests", type=int, default=64)
    parser.add_argument("--fresh", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=Path("models/zoo/epic-small-128"))
    given = parser.parse_args()
    from models.cli import limit_threads

    limit_threads(given.threads)
    names = ("minutes", "iterations", "original", "originals", "tests", "batch", "learning_rate", "model")
    claim(given.work, **{name: getattr(given, name) for name in names})
    release = ModelSection(bundle=given.model / "bundle", decoder=given.model / "decoder")
    bundle, parent = open_release(release)
    counts, shares = given.events or [50], given.recorded or [0.0, 0.05]
    modelled = given.work / "ground"
    make = [bundle, parent.acquisition, modelled]
    ground = make_ground(SURVEY_SEED, max(counts), *make)
    fresh = make_ground(FRESH_SEED, given.fresh, *make)
    benchmark = Benchmark(given, release, bundle, parent, fresh)
    print(
        "| events | recordings | decoder | fresh events, m/s | change | trained on, m/s | test set | latents |"
    )
    print("|---|---|---|---|---|---|---|---|")
    gained: dict[float, float] = {}
    for count in counts:
        for share in shares:
            gained[share] = benchmark.run_case(ground.first(count), share)
    kind = "true maps as labels, an upper bound" if given.label == "true" else "refined maps as labels"
    told = [
        f"{gain:.1f} % less error "
        + ("from latents alone" if not share else f"with {100 * share:g} % of recordings ({kind})")
        for share, gain in gained.items()
    ]
    print(f"\n{max(counts)} events, decoder chosen by the gate, fresh events: {'; '.join(told)}")


if __name__ == "__main__":
    main()
