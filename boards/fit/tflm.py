"""Run the real TFLite-Micro interpreter on this machine, as a microcontroller would."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from boards.errors import BoardsError
from boards.fit import arena_probe
from boards.quiet import hold_output

MISSING = "the package tflite-micro is not installed (extra `tflm`)"


class TflmError(BoardsError, ValueError):
    """TFLite-Micro cannot run a model at all."""


def available() -> bool:
    """Return True if the TFLite-Micro interpreter can be imported."""
    try:
        _runtime()
    except ImportError:
        return False
    return True


def version() -> str:
    """Return the installed version of tflite-micro."""
    return metadata.version("tflite-micro")


@cache
def measure_arena_bytes(model: bytes) -> int:
    """Return the smallest tensor arena in bytes in which TFLite-Micro allocates and runs ``model``.

    It is found by trying many sizes (``boards/fit/arena_probe.py``), so it includes what the interpreter's own report
    omits. Pointers have 8 bytes here and 4 on a microcontroller. A device needs no more than this, except for the
    scratch buffers of its own kernels (``boards/fit/scratch.py``).

    Raises:
        TflmError: The interpreter cannot run the model at any size.
    """

    probe = subprocess.run(
        [sys.executable, str(Path(arena_probe.__file__))], input=model, capture_output=True, check=True
    )
    # TFLite-Micro's C code prints to stdout too; the result is the last line.
    arena_bytes = int(probe.stdout.split()[-1])
    if arena_bytes == 0:
        raise TflmError(
            f"TFLite-Micro cannot run the model: {_failure(model)}; an operator or a shape in it is beyond that "
            "runtime"
        )
    return arena_bytes


def run(model: bytes, inputs: np.ndarray, arena_bytes: int) -> np.ndarray:
    """Run TFLite-Micro: ``(n, time, width, sources)`` int8 -> ``(n, latent)`` int8."""
    with hold_output():
        interpreter = _prepared(model, arena_bytes)
        outputs = []
        for row in inputs:
            interpreter.set_input(np.ascontiguousarray(row[None]), 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0)[0].copy())
    return np.stack(outputs)


def _runtime() -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime


def _prepared(model: bytes, arena_bytes: int) -> Any:
    return _runtime().Interpreter.from_bytes(model, arena_size=arena_bytes)


def _failure(model: bytes) -> str:
    with hold_output() as log:
        with contextlib.suppress(RuntimeError):
            _prepared(model, arena_probe.LARGEST_ARENA_BYTES).invoke()
        lines = log.lines()
    return lines[0] if lines else "it gave no reason"
