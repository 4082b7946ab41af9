"""Mutated records, frames and messages by the million: what crashes, hangs, grows, or is taken for another's.

    python benchmarks/robustness/fuzz.py [--inputs 1000000] [--seed 0] [--out results.json]

Honest records with bits flipped, cut, spliced, doubled, with header fields and lengths that lie; frames with
broken COBS and frames whole and sealed with a record that is wrong; CBOR that announces more than it has. Shares:
30 % ``packet``, 25 % ``framing`` with both seals, 10 % update and health messages, 15 % through a gateway's line into
the receiver behind it, 20 % into the receiver's ROUTER over TCP with CURVE, where one input in 1,000 is a connection
that does not speak ZeroMQ. A batch that takes longer than ``HANG_S`` ends the run with every thread's stack.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from fuzz_targets import FrameTarget, FuzzedCentre, GatewayTarget, MessageTarget, PacketTarget, ReceiverTarget

from testbed.processes import resident_mib

SHARES = {"packet": 0.30, "framing": 0.25, "messages": 0.10, "gateway": 0.15, "receiver": 0.20}
ROUNDS = 100
# Before memory is first read, as interpreter and libraries take their own at the start.
WARM_UP_ROUNDS = 5
HANG_S = 120.0


def fuzz(folder: Path, inputs: int, seed: int) -> dict:
    """Throw ``inputs`` at the targets in turns. Raises whatever they raise: a crash."""
    centre = FuzzedCentre(folder)
    targets = {
        "packet": PacketTarget(seed),
        "framing": FrameTarget(seed + 1),
        "messages": MessageTarget(seed + 2),
        "gateway": GatewayTarget(seed + 3, centre),
        "receiver": ReceiverTarget(seed + 4, centre),
    }
    given = dict.fromkeys(targets, 0)
    memory_mib = []
    slowest_s = 0.0
    started_s = time.monotonic()
    try:
        for done in range(1, ROUNDS + 1):
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            for name, target in targets.items():
                due = round(inputs * SHARES[name] * done / ROUNDS) - given[name]
                before_s = time.monotonic()
                target.feed(due)
                slowest_s = max(slowest_s, time.monotonic() - before_s)
                given[name] += due
            if done >= WARM_UP_ROUNDS:
                memory_mib.append(resident_mib())
        outcomes = {name: dict(target.counts) for name, target in targets.items()}
    finally:
        faulthandler.cancel_dump_traceback_later()
        for name in ("gateway", "receiver"):
            targets[name].close()
        centre.close()
    return {
        "inputs": sum(given.values()),
        "given": given,
        "outcomes": outcomes,
        "rss_start_mib": round(memory_mib[0], 1),
        "rss_most_mib": round(max(memory_mib), 1),
        "rss_end_mib": round(memory_mib[-1], 1),
        "slowest_batch_s": round(slowest_s, 1),
        "took_s": round(time.monotonic() - started_s, 1),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="results as JSON")
    given = parser.parse_args()
    if given.inputs < 1000:
        parser.error("expected --inputs from 1000")
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), given.inputs, given.seed)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, count in result["given"].items():
        outcome = ", ".join(f"{number} {what}" for what, number in result["outcomes"][name].items())
        print(f"{name}: {count} inputs ({outcome})")
    print(
        f"{result['inputs']} mutated inputs in {result['took_s']:.0f} s: no crash, no hang (slowest batch "
        f"{result['slowest_batch_s']} s), nothing forged accepted; resident memory {result['rss_start_mib']} MiB "
        f"after {WARM_UP_ROUNDS} % of them, {result['rss_end_mib']} MiB at the end, at most {result['rss_most_mib']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
