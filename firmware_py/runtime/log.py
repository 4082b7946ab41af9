"""Logs that a program can read: one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from firmware_py.errors import FirmwareError


def now_us() -> int:
    return time.time_ns() // 1000


class LogError(FirmwareError, OSError):
    """The log cannot be opened."""


class Log:
    """One JSON object a line, to a file or to standard error. Raises ``LogError`` when it cannot be opened."""

    def __init__(self, path: Path | None) -> None:
        self._stream: TextIO = sys.stderr
        if path:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = path.open("a", buffering=1)
            except OSError as error:
                raise LogError(f"{path}: cannot be written ({error.strerror}); choose another file") from None

    def write(self, what: str, **values: Any) -> None:
        # A log that has no room any more must not stop the records.
        with contextlib.suppress(OSError):
            self._stream.write(json.dumps({"what": what, "at_us": now_us(), **values}) + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._stream is not sys.stderr:
            with contextlib.suppress(OSError):
                self._stream.close()
