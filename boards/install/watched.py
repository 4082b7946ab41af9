"""Outcome of the start of an installed device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Watched:
    """``hello`` sent, ``stopped`` with the line ``said``, or ``silent`` with the last one."""

    state: Literal["hello", "stopped", "silent"]
    said: str

    @property
    def exit_code(self) -> int:
        return {"hello": 0, "stopped": 3, "silent": 4}[self.state]
