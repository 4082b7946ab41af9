"""For processes whose wall clock a test sets: seconds to add are in the file that EPIC_CLOCK_FILE names."""

import os
import time
from pathlib import Path

if "EPIC_CLOCK_FILE" in os.environ:
    _file = Path(os.environ["EPIC_CLOCK_FILE"])
    _time_ns = time.time_ns

    def _set_time_ns() -> int:
        return _time_ns() + int(_file.read_text()) * 1_000_000_000

    time.time_ns = _set_time_ns
    time.time = lambda: _set_time_ns() / 1e9
