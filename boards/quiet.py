"""Keep what C++ libraries write to the process's own streams off the operator's screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO


class Kept:
    """What was written while the streams were held."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def lines(self) -> list[str]:
        """The non-empty lines so far."""
        self._file.seek(0)
        return [line for line in self._file.read().decode(errors="replace").splitlines() if line.strip()]


@contextlib.contextmanager
def hold_output() -> Iterator[Kept]:
    """Send the output and error streams to a temporary file for a while, and hush Python's warnings.

    Replacing ``sys.stderr`` alone would not do: the TFLite converter and TFLite-Micro write to the
    file descriptors themselves. This holds for the whole process, so keep the block short.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        for number in (1, 2):
            stack.enter_context(descriptor_to(file.fileno(), number))
        text = stack.enter_context(os.fdopen(os.dup(file.fileno()), "w", errors="replace"))
        stack.enter_context(contextlib.redirect_stdout(text))
        stack.enter_context(contextlib.redirect_stderr(text))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield Kept(file)


@contextlib.contextmanager
def descriptor_to(target: int, number: int) -> Iterator[None]:
    """What is written to the file descriptor ``number`` goes to ``target`` for a while."""
    saved = os.dup(number)
    os.dup2(target, number)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
