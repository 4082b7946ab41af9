"""Logs: one JSON object a line for programs, a readable line for a person at a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from firmware_py.errors import FirmwareError
from firmware_py.protocol.printable import printable


def now_us() -> int:
    return time.time_ns() // 1000


class LogError(FirmwareError, OSError):
    """The log cannot be opened."""


class Log:
    """Log of one JSON object per line, to a file or standard error; on a terminal, time, message and values.

    Each object begins with ``message`` (what happened) and ``timestamp_us`` (its time since 1970). ``event`` is the
    number of a seismic event.

    Raises:
        LogError: The log cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._stream: TextIO = sys.stderr
        if path:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = path.open("a", buffering=1)
            except OSError as error:
                raise LogError(f"{path}: cannot be written ({error.strerror}); choose another file") from None

    def write(self, message: str, **values: Any) -> None:
        """Write one entry: ``message`` names what happened (``auth_rejected``), ``values`` say with what."""
        # A full disk must not stop the records.
        with contextlib.suppress(OSError):
            if self._stream.isatty():
                line = readable_line(message, now_us(), values)
            else:
                line = json.dumps({"message": message, "timestamp_us": now_us(), **values})
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._stream is not sys.stderr:
            with contextlib.suppress(OSError):
                self._stream.close()


def readable_line(message: str, timestamp_us: int, values: Mapping[str, Any]) -> str:
    """An entry for a person: local time, message, then its values, with nothing in it that a terminal obeys."""
    clock = time.strftime("%H:%M:%S", time.localtime(timestamp_us / 1e6))
    shown = "  ".join(f"{name}={printable(str(value))}" for name, value in values.items())
    return f"{clock}  {message:<16}  {shown}".rstrip()
