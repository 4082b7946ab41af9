"""Measure how much slower a board computes than this machine, on one core, with the same benchmarks.

The board's figures are published ones, from ``[speed]`` of its profile. This machine's figures are measured here. An
int8 network gains most from this machine's vector units, so EPIC's network is slowed by the int8 factor and the rest of
a device's work by the factor of general code. The baselines are slowed by the factor of general code throughout, which
favours their networks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass

import numpy as np

from boards.profile import BoardError, board_names, load_board

INPUT_SHAPE = (224, 224, 3)
# Take the fastest of many runs, which other processes disturbed least.
REPEATS = 40
# Multiply-accumulates of MobileNet v1 1.0 (Howard et al., arXiv 1704.04861, table 4).
MOBILENET_MACS = 569e6
SEVEN_ZIP = ("7z", "b", "1", "-mmt1", "-md22")


@dataclass(frozen=True)
class Slowdown:
    """Slowdown factors of a board: ``network`` for an int8 network, ``code`` for everything else, and their source.

    ``macs_per_s`` is the int8 rate of one core of the board. ``power_w`` is the board's power above idle.
    """

    board: str
    title: str
    network: float
    code: float
    macs_per_s: float
    power_w: float
    measured: str
    sources: tuple[str, ...]


def slowdown(name: str) -> Slowdown:
    """Measure the slowdown of the board of that name against this machine. Raises ``BoardError``."""
    board = load_board(name)
    if board.speed is None:
        known = [other for other in board_names() if load_board(other).speed]
        raise BoardError(f"board {name!r}: its profile has no published speed; {', '.join(known)} has one")
    rating, inference_ms = seven_zip_mips(), mobilenet_ms()
    network, code, power = board.speed.network, board.speed.code, board.speed.power
    return Slowdown(
        board.name,
        board.title,
        round(network.value / inference_ms, 1),
        round(rating / code.value, 1),
        MOBILENET_MACS / (network.value / 1000),
        power.value,
        f"MobileNet v1 in int8 {inference_ms:.2f} ms here, {network.value:g} ms there; 7-zip {rating:.0f} MIPS "
        f"here, {code.value:g} there",
        (network.said, code.said, power.said),
    )


def mobilenet_ms() -> float:
    """Measure one inference of int8 MobileNet v1 1.0 with random weights, on one thread of this machine, in ms."""
    import keras
    from ai_edge_litert.interpreter import Interpreter

    from boards.quiet import hold_output
    from convert.quantise import quantise

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(input_shape=INPUT_SHAPE, weights=None)
    images = np.random.default_rng(0).uniform(-1.0, 1.0, (2, *INPUT_SHAPE)).astype(np.float32)
    with hold_output():
        interpreter = Interpreter(model_content=quantise(network, images), num_threads=1)
        interpreter.allocate_tensors()
    times_s = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        interpreter.invoke()
        times_s.append(time.perf_counter() - started_s)
    return 1000 * min(times_s)


def seven_zip_mips() -> float:
    """Measure 7-zip's rating on one thread, per processor time used. Raises ``BoardError``."""
    if not shutil.which(SEVEN_ZIP[0]):
        raise BoardError(f"{SEVEN_ZIP[0]}: not found; Debian's package p7zip-full has it")
    said = subprocess.run(SEVEN_ZIP, capture_output=True, text=True, check=False).stdout
    return rating_mips(said)


def rating_mips(said: str) -> float:
    """Parse the column R/U of the last line of `7z b`. Raises ``BoardError``."""
    total = re.search(r"^Tot:\s+\d+\s+(\d+)\s+\d+\s*$", said, re.MULTILINE)
    if not total:
        raise BoardError(f"{' '.join(SEVEN_ZIP)}: expected a line 'Tot: ...', got {said[-80:]!r}")
    return float(total[1])
