"""Keep what C++ libraries write to the process's own streams off the operator's screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
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
    """Send file descriptors 1 and 2 to a temporary file for a while.

    Replacing ``sys.stderr`` would not do: the TFLite converter and TFLite-Micro write to the file
    descriptors themselves. This holds for the whole process, so keep the block short.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as file:
        saved = {number: os.dup(number) for number in (1, 2)}
        for number in saved:
            os.dup2(file.fileno(), number)
        try:
            yield Kept(file)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
