"""EPIC and a centralised network, each for the same time on the same simulated samples, on one GPU.

    KERAS_BACKEND=jax python benchmarks/on_gpu.py --data /data/train-exact --start-from RUN --count 20000 \
        --minutes 4 --out OUT

The samples are modelled once for both (``epic train ... --simulate`` does so for one). ``--data`` needs no more than
the manifest of a data set. Prints the time of each part, and leaves the runs ``OUT/epic`` and ``OUT/inversionnet``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from models.run import start_run
from models.simulated import Simulated, read_sequence, simulate
from models.training import Budget

THIN = 10
STARTED = time.monotonic()


def say(what: str, **figures: float) -> None:
    print(json.dumps({"at_s": round(time.monotonic() - STARTED, 1), "what": what, **figures}), flush=True)


def train(kind: str, arguments: argparse.Namespace, samples: Simulated, **choices) -> None:
    is_epic = kind == "epic"
    budget = Budget(
        batch=choices.pop("batch"),
        learning_rate=choices.pop("learning_rate"),
        minutes=arguments.minutes,
        precision="mixed_bfloat16",
        quantised=is_epic,
        ordered=is_epic,
    )
    last = [0.0]

    def on_progress(share: float, figures: dict) -> None:
        if time.monotonic() - last[0] > 15:
            last[0] = time.monotonic()
            say(kind, share=round(share, 3), loss=round(figures["loss"], 4), epoch=round(figures["epoch"], 2))

    metrics = start_run(
        kind,
        [arguments.data],
        arguments.out / kind,
        budget,
        thin=THIN,
        on_progress=on_progress,
        source=lambda: samples,
        **choices,
    )
    families = metrics.pop("families")
    say(f"{kind} done", **metrics, steps_a_second=metrics["step"] / metrics["elapsed_s"])
    for name, row in families.items():
        say(f"{kind} watched {name}", mae=round(row["mae"], 4), ssim=round(row["ssim"], 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True, help="samples a family")
    parser.add_argument("--minutes", type=float, required=True, help="of training, each")
    parser.add_argument("--batch", type=int, default=128, help="of EPIC; the other has half")
    arguments = parser.parse_args()
    last = [0.0]

    def on_load(done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            say("simulated", done=done, total=total)

    say("begin")
    samples = simulate(read_sequence(arguments.data), arguments.count, THIN, on_load)
    say("samples", trained_on=samples.trained_on, watched=len(samples.watched))
    train(
        "epic",
        arguments,
        samples,
        batch=arguments.batch,
        learning_rate=1.5e-3,
        start_from=arguments.start_from,
        decoder="large",
    )
    train("inversionnet", arguments, samples, batch=arguments.batch // 2, learning_rate=1e-3)


if __name__ == "__main__":
    main()
