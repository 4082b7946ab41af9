"""Outcome of the start of an installed device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Watched:
    """Outcome of a start.

    ``hello``: the centre has answered it; on a microcontroller, it was sent. ``stopped`` comes with the line ``said``,
    ``silent`` with the last one.
    """

    state: Literal["hello", "stopped", "silent"]
    said: str

    @property
    def exit_code(self) -> int:
        return {"hello": 0, "stopped": 3, "silent": 4}[self.state]
