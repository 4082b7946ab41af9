"""The record of one velocity family, and the frame in which it is drawn.

Families are drawn in the benchmark's own frame: 70 by 70 cells of 10 m and velocities as a fraction of
1,500 to 4,500 m/s. A survey's grid samples that frame, so another grid or velocity range shows the same
structures, stretched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FRAME_CELLS = 70
"""Width and depth of the frame; the benchmark's grid samples it at 0, 1 ... 69."""

STEPS = 3000
"""Velocity levels in the range: the benchmark's layers have whole metres a second."""


@dataclass(frozen=True)
class Frame:
    """The points at which a map is drawn, in cells of the benchmark's frame.

    Attributes:
        z: Depth of each row, ``(nz, 1)``.
        x: Position of each column, ``(1, nx)``.
    """

    z: np.ndarray
    x: np.ndarray

    @classmethod
    def of_grid(cls, n_depth: int, n_width: int) -> Frame:
        """Spread a grid of ``(n_depth, n_width)`` cells over the frame."""
        return cls(
            (np.arange(n_depth) * (FRAME_CELLS / n_depth))[:, None],
            (np.arange(n_width) * (FRAME_CELLS / n_width))[None, :],
        )


Generator = Callable[[np.random.Generator, Frame], np.ndarray]
"""Draws one map ``(nz, nx)`` of velocities, 0 to 1 of the survey's range."""


@dataclass(frozen=True)
class Family:
    """A velocity family of OpenFWI.

    Attributes:
        name: Canonical name, lower case with underscores.
        draw: Generator of one map.
        map_files: Pattern of the benchmark's map files, with ``{}`` for the number.
    """

    name: str
    draw: Generator
    map_files: str
