"""The real TFLite-Micro interpreter on this machine: what a microcontroller would compute and need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from boards.quiet import hold_output

MISSING = "the package tflite-micro is not installed (extra `tflm`)"
# The interpreter aligns what it allocates to 16 bytes, so a finer answer means nothing.
ARENA_STEP_BYTES = 16
LARGEST_ARENA_BYTES = 64 * 1024 * 1024


class TflmError(ValueError):
    """TFLite-Micro cannot run a model at all."""


def available() -> bool:
    """Whether the TFLite-Micro interpreter can be imported here."""
    try:
        _runtime()
    except ImportError:
        return False
    return True


def version() -> str:
    """The installed version of tflite-micro."""
    return metadata.version("tflite-micro")


def measure_arena_bytes(model: bytes) -> int:
    """The least tensor arena, in bytes, with which TFLite-Micro allocates and runs ``model``.

    Found by allocating in arenas of many sizes, so it holds whatever the interpreter's own report leaves
    out, and by running in the least. Pointers are 8 bytes here and 4 on a microcontroller: a device needs
    no more than this, but for the scratch buffers of its own kernels (``boards/scratch.py``).

    Raises ``TflmError`` when the interpreter cannot run the model at any size.
    """

    def allocates_in(arena_bytes: int) -> bool:
        with hold_output():
            try:
                _prepared(model, arena_bytes)
            except RuntimeError:
                return False
        return True

    highest = 4096
    while not allocates_in(highest):
        highest *= 2
        if highest > LARGEST_ARENA_BYTES:
            raise TflmError(_refused(_failure(model)))
    least = _least(allocates_in, highest // 2 if highest > 4096 else 0, highest)
    with hold_output() as log:
        try:
            _prepared(model, least).invoke()
        except RuntimeError:
            raise TflmError(_refused((log.lines() or ["it gave no reason"])[0])) from None
    return least


def run(model: bytes, inputs: np.ndarray, arena_bytes: int) -> np.ndarray:
    """Outputs of TFLite-Micro: ``(n, time, width, sources)`` int8 -> ``(n, latent)`` int8."""
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


def _least(holds: Callable[[int], bool], too_low: int, enough: int) -> int:
    """The least multiple of the step for which ``holds`` is true, between two known answers."""
    while enough - too_low > ARENA_STEP_BYTES:
        middle = (too_low + enough) // 2 // ARENA_STEP_BYTES * ARENA_STEP_BYTES
        if holds(middle):
            enough = middle
        else:
            too_low = middle
    return enough


def _refused(reason: str) -> str:
    return f"TFLite-Micro cannot run the model: {reason}; an operator or a shape in it is beyond that runtime"


def _failure(model: bytes) -> str:
    with hold_output() as log:
        with contextlib.suppress(RuntimeError):
            _prepared(model, LARGEST_ARENA_BYTES).invoke()
        lines = log.lines()
    return lines[0] if lines else "it gave no reason"
