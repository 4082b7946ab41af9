"""Find the smallest arena in which TFLite-Micro runs a model: its own process, model on stdin, bytes on stdout.

In too small an arena the interpreter reports an error for most sizes, but crashes for some (seen with
DEPTHWISE_CONV_2D). Each size is therefore tried in a fork of this process, which has neither threads nor TensorFlow.
Prints 0 if no size works.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# Search step; the interpreter aligns allocations to 16 bytes.
ARENA_STEP_BYTES = 16
SMALLEST_ARENA_BYTES = 4096
LARGEST_ARENA_BYTES = 64 * 1024 * 1024


def runs_in(model: bytes, arena_bytes: int) -> bool:
    """Return True if TFLite-Micro allocates and runs ``model`` in this arena; tried in a child process."""
    from tflite_micro.python.tflite_micro import runtime

    child = os.fork()
    if child == 0:
        try:
            runtime.Interpreter.from_bytes(model, arena_size=arena_bytes).invoke()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def least_arena_bytes(holds: Callable[[int], bool]) -> int:
    """Return the smallest multiple of the step for which ``holds`` is true, or 0 if there is none."""
    enough, too_low = SMALLEST_ARENA_BYTES, 0
    while not holds(enough):
        enough, too_low = 2 * enough, enough
        if enough > LARGEST_ARENA_BYTES:
            return 0
    while enough - too_low > ARENA_STEP_BYTES:
        middle = (too_low + enough) // 2 // ARENA_STEP_BYTES * ARENA_STEP_BYTES
        if holds(middle):
            enough = middle
        else:
            too_low = middle
    return enough


if __name__ == "__main__":
    content = sys.stdin.buffer.read()
    print(least_arena_bytes(lambda arena_bytes: runs_in(content, arena_bytes)))
