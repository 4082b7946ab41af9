"""Keep messages that C++ libraries write to the process's streams off the operator's screen."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO

from boards.around_import import AroundImport

# Messages that TensorFlow prints on import to stderr, whatever TF_CPP_MIN_LOG_LEVEL is.
GREETING = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog")


class Kept:
    """Output captured while the streams were held."""

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
    """Redirect the file descriptor ``number`` to ``target`` within the block."""
    saved = os.dup(number)
    os.dup2(target, number)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def import_without_greetings(name: str) -> None:
    """Have the first import of the module ``name``, whenever that is, drop what matches ``GREETING``.

    All else that it writes to the error stream comes when it is over, also when it fails.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, AroundImport(name, _greetings_dropped))


@contextlib.contextmanager
def _greetings_dropped() -> Iterator[None]:
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        try:
            with descriptor_to(held.fileno(), 2):
                yield
                sys.stderr.flush()
        finally:
            held.seek(0)
            for line in held:
                if not GREETING.match(line):
                    os.write(2, line)
