"""Waiting for a condition instead of for a while."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "condition"):
    """The first true value of ``condition``; an ``AssertionError`` that names ``what`` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {timeout_s} s")
