"""EPIC and InversionNet, each for the same time on the same simulated samples, on one GPU whose time is short.

    KERAS_BACKEND=jax python benchmarks/training/on_gpu.py --data /work/data/train-exact --start-from RUN --count 6400 \
        --until-s 250 --out OUT

Does what two runs of ``epic train ... --simulate`` do, but compiles both networks at once, models the samples once,
and ends after a given time. What EPIC was trained before, on a processor, is made good: InversionNet trains
``--longer-s`` longer. ``--data`` needs no more than a data set's manifest. Leaves the run ``OUT/epic`` and, in
float16 but for its vectors, ``OUT/inversionnet-N.npy`` (put together again with ``--join``).
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

THIN = 10
STARTED = time.monotonic()
FILES = 4
# The loss from which on a GPU's time is not spent any further.
NO_NETWORK = 1.0
# A gather modelled again of its stored float16 map differs by so much and no more.
MODELLED_AGAIN = 0.02


def say(what: str, **figures: float) -> None:
    print(json.dumps({"at_s": round(time.monotonic() - STARTED, 1), "what": what, **figures}), flush=True)


class Contender:
    """A network with its compiled turn of training steps, before there are samples."""

    def __init__(self, kind: str, budget: Any, arguments: argparse.Namespace, log_range: list[float]) -> None:
        import keras

        from models.data.simulated import read_sequence, shard_shapes
        from models.recipes import recipe_of
        from models.training.learning import on_device
        from models.training.request import Setting, TrainRequest
        from models.training.run import configure
        from models.training.run_config import computing_in
        from models.training.warm_start import read_origin

        self.kind, self.run, self.budget = kind, arguments.out / kind, budget
        self.run.mkdir(parents=True)
        sequence = read_sequence(arguments.data)
        self.origin = read_origin(arguments.start_from) if kind == "epic" else None
        decoder = "deep" if kind == "epic" else "small"
        request = TrainRequest(kind, [arguments.data], self.run, budget, THIN, "small", decoder)
        setting = Setting(
            sequence.acquisition,
            lambda: log_range,
            self.origin,
            arguments.count,
            self.origin.trained_on if self.origin else [],
        )
        self.config, self.recipe = configure(request, setting), recipe_of(kind)
        keras.utils.set_random_seed(budget.seed)
        with computing_in(budget.precision):
            self.network, self.parts = self.recipe.build(
                self.config, sequence.acquisition, budget.quantised, budget.ordered
            )
        self.recipe.compile_model(self.network, budget)
        self.turns = on_device(self.config, self.network, budget, shard_shapes(sequence, arguments.count))

    def train(self, samples: Any, seconds: float) -> None:
        from models.data.batches import TrainingData
        from models.recipes.epic import begin
        from models.training.run_config import write_json
        from models.training.training import Steps, train

        budget = replace(self.budget, minutes=seconds / 60)
        write_json(self.run / "config.json", asdict(replace(self.config, budget=asdict(budget))))
        batches = self.recipe.simulated_batches(self.config, samples, budget.ordered)
        if self.origin:
            begin(self.origin, self.parts, batches.plain(np.arange(len(samples.validation))), budget)
        self.turns.fill(samples, batches)
        say(f"{self.kind} begins", seconds=round(seconds, 1))
        last = [0.0]

        def on_progress(share: float, figures: dict) -> None:
            if figures["loss"] > NO_NETWORK:
                raise SystemExit(
                    f"{self.kind}: loss {figures['loss']:.3f}; a map drawn of nothing has half of 1"
                )
            if time.monotonic() - last[0] > 8:
                last[0] = time.monotonic()
                say(self.kind, share=round(share, 3), loss=round(figures["loss"], 4), epoch=figures["epoch"])

        found, _ = train(
            self.network,
            TrainingData(self.turns, np.arange(samples.trained_on), np.array([], int)),
            budget,
            self.run,
            Steps(self.turns.learn, self.turns.turn),
            on_progress,
        )
        write_json(self.run / "metrics.json", {**vars(found), "trained_on": samples.trained_on})
        say(f"{self.kind} done", **vars(found))
        weights = self.network.get_weights()
        if self.kind == "epic":
            network, parts = self.recipe.build(self.config, samples.validation.acquisition)
            network.set_weights(weights)
            for name, part in parts.items():
                part.save(self.run / f"{name}.keras")
        else:
            vectors = {str(i): w for i, w in enumerate(weights) if w.ndim < 2}
            np.savez(self.run / "vectors.npz", **vectors)
            flat = np.concatenate([w.astype(np.float16).ravel() for w in weights if w.ndim > 1])
            for n, some in enumerate(np.array_split(flat, FILES)):
                np.save(self.run.parent / f"{self.kind}-{n}.npy", some)
        say(f"{self.kind} saved")


def join(out: Path) -> None:
    """The run of InversionNet from its files."""
    from models.recipes import recipe_of
    from models.training.run_config import read_config
    from physics.acquisition import Acquisition

    config = read_config(out / "inversionnet")
    network, _ = recipe_of(config.kind).build(config, Acquisition.from_dict(config.acquisition))
    vectors = np.load(out / "inversionnet" / "vectors.npz")
    flat = np.concatenate([np.load(out / f"inversionnet-{n}.npy") for n in range(FILES)]).astype(np.float32)
    weights = []
    for i, old in enumerate(network.get_weights()):
        if old.ndim < 2:
            weights.append(vectors[str(i)])
            continue
        weights.append(flat[: old.size].reshape(old.shape))
        flat = flat[old.size :]
    network.set_weights(weights)
    network.save(out / "inversionnet" / "inversionnet.keras")


def check_stored(samples: Any) -> float:
    """Whether stored gathers are those of the maps stored beside them: the worst relative difference of some."""
    import cupy

    from models.data.simulated import STORED_AVERAGE
    from physics.engines.cuda import record
    from physics.normalise import denormalise_velocity

    a, worst = samples.validation.acquisition, 0.0
    for gathers, maps in samples.shards:
        rows = np.linspace(0, len(maps) - 1, 3).astype(int)
        velocity = denormalise_velocity(np.asarray(maps[rows], np.float32), a)
        again = cupy.asnumpy(record(velocity, a, STORED_AVERAGE))
        stored = np.asarray(gathers[rows], np.float32)
        worst = max(worst, float(np.linalg.norm(again - stored) / np.linalg.norm(stored)))
    if not worst < MODELLED_AGAIN:
        raise SystemExit(f"stored gathers are not those of their maps: they differ by {worst:.3f}")
    return worst


def compete(arguments: argparse.Namespace) -> None:
    import cupy

    from models.data.simulated import STORED_AVERAGE, read_sequence, simulate
    from models.training.budget import Budget
    from physics.engines.cuda import record
    from physics.families import generate_map
    from physics.normalise import log_transform

    say("begin")
    sequence = read_sequence(arguments.data)
    some = [
        generate_map(f, sequence.seed, i, sequence.acquisition)[0]
        for f in sequence.families
        for i in range(5)
    ]
    values = log_transform(cupy.asnumpy(record(np.stack(some), sequence.acquisition, STORED_AVERAGE)))
    log_range = [float(values.min()), float(values.max())]
    common: dict[str, Any] = {"minutes": 1.0, "precision": "mixed_bfloat16", "optimiser": "muon"}
    budgets = {
        "epic": Budget(batch=arguments.batch, learning_rate=3e-3, quantised=True, ordered=True, **common),
        "inversionnet": Budget(batch=arguments.batch // 2, learning_rate=1e-3, **common),
    }
    epic, inversionnet = (Contender(kind, budget, arguments, log_range) for kind, budget in budgets.items())
    say("traced")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: one.turns.compile(), (epic, inversionnet)))
    say("compiled")
    samples = simulate(sequence, arguments.count, THIN)
    say("simulated", trained_on=samples.trained_on, worst_modelled_again=check_stored(samples))
    left_s = arguments.until_s - (time.monotonic() - STARTED) - arguments.longer_s
    epic.train(samples, left_s / 2)
    inversionnet.train(samples, left_s / 2 + arguments.longer_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--start-from", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, help="samples a family")
    parser.add_argument("--until-s", type=float, help="end of training, from the start of the program")
    parser.add_argument("--longer-s", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=128, help="of EPIC; InversionNet has half")
    parser.add_argument("--join", action="store_true")
    arguments = parser.parse_args()
    if arguments.join:
        join(arguments.out)
    else:
        compete(arguments)


if __name__ == "__main__":
    main()
