"""Kill a board with stock MicroPython again and again while it records and sends over TCP to a real centre.

    python benchmarks/robustness/board_kills.py [--kills 50] [--longest-s 1.5] [--model ZOO_DIR]

The board is MicroPython 1.25 (`.ci/micropython amd64`) without `ml`. It replays 20 shipped recordings, encodes them by
native code, spools them in a file and sends them to a gateway, whose receiver writes the journal. Each life ends by
SIGKILL after a random time of up to ``--longest-s``, as at a power cut. The last line is the number of records that are
missing or differ from LiteRT's reference kernels' latents.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from gateway_centre import GatewayCentre
from stock_board import DEVICE, StockBoard, arrived, kill_and_restart
from waiting import wait_until

from central.ingest.receiver import Expected
from firmware_py.inference.bundle import load_bundle
from firmware_py.protocol.rate import Coding
from testbed.run import DEFAULT_MODEL

EVENTS = 20
# Time for what is left after the last kill.
PATIENCE_S = 1200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest-s", type=float, default=1.5)
    parser.add_argument("--interval-ms", type=int, default=2000, help="between recordings")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    given = parser.parse_args()
    bundle = load_bundle(given.model / "bundle")
    models = {bundle.model_hash: Expected(5, Coding(bundle.output.shape[1]))}
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        centre = stack.enter_context(GatewayCentre(folder / "centre", models=models))
        board = stack.enter_context(
            contextlib.closing(
                StockBoard(
                    folder / "board",
                    bundle,
                    centre.endpoint,
                    centre.secret(DEVICE),
                    EVENTS,
                    given.interval_ms,
                )
            )
        )
        board.start()
        kill_and_restart(board, given.kills, given.longest_s)
        during = len(arrived(centre))
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(arrived(centre)) == EVENTS, PATIENCE_S, "every record")
        got = arrived(centre)
    wrong = sum(got.get(event) != latent for event, latent in enumerate(board.latents, start=1))
    took_s = time.monotonic() - started_s
    print(
        f"{given.kills} kills, {during} of {EVENTS} records by the last one, {len(got)} in the end, {took_s:.0f} s"
    )
    print(wrong)


if __name__ == "__main__":
    main()
