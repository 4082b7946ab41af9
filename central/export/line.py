"""Locate a survey's line on the earth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """``origin_m`` is x and y of the centre of cell 0, ``azimuth_deg`` the direction of growing distance from y
    (north) clockwise, ``crs`` the name of the coordinates, such as EPSG:25832. `epic data import` prints them."""

    origin_m: tuple[float, float]
    azimuth_deg: float
    crs: str | None = None

    def coordinates(self, distance_m: np.ndarray) -> np.ndarray:
        """Return x and y ``(n, 2)`` of distances ``(n,)`` along the line, in metres."""
        turn = np.radians(self.azimuth_deg)
        return np.asarray(self.origin_m) + np.outer(distance_m, [np.sin(turn), np.cos(turn)])
