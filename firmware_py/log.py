"""Logs that a program can read: one JSON object a line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def now_us() -> int:
    return time.time_ns() // 1000


class Log:
    """One JSON object a line, to a file or to standard error."""

    def __init__(self, path: Path | None) -> None:
        self._stream: TextIO = sys.stderr
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", buffering=1)

    def write(self, what: str, **values: Any) -> None:
        self._stream.write(json.dumps({"what": what, "at_us": now_us(), **values}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not sys.stderr:
            self._stream.close()
