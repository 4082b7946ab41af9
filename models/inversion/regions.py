"""Split a map into regions of nearly one velocity each, with the edges where it changes most."""

from __future__ import annotations

import heapq

import numpy as np
from scipy.ndimage import gaussian_filter, label, maximum_filter, minimum_filter, watershed_ift

# Weight of a cell in its region's velocity: 1 / (its change + this), so that cells on edges count less.
EDGE_MPS = 5.0
# Levels per m/s at which the watershed distinguishes changes.
LEVELS_PER_MPS = 4.0
# Distance in cells within which a cell chooses its region, and the number of rounds of choosing.
REACH_CELLS, CHOICES = 2, 2
# Standard deviation of the smoothing of edges, in cells.
EDGE_CELLS = 1.5


def split(velocity_mps: np.ndarray, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Split a map into regions.

    The watershed of the map's changes has too many regions. Neighbours are merged, those first that lose least: the
    loss is the sum of squares that a common velocity adds, per cell of the common edge (Koepfler, Lopez and Morel
    1994, SIAM Journal on Numerical Analysis 31). Then each cell near an edge chooses the region whose velocity is
    nearest to its own, and the edges are smoothed.

    Args:
        velocity_mps: Map ``(nz, nx)`` in m/s.
        loss: Largest loss of a merger, in (m/s)^2 cells.

    Returns:
        The region of each cell ``(nz, nx)``, counted from zero, and the velocity of each region in m/s.
    """
    change = _change(velocity_mps)
    lowest, _ = label(change <= minimum_filter(change, 3))
    levels = np.minimum(change * LEVELS_PER_MPS, np.iinfo(np.uint16).max).astype(np.uint16)
    regions = _counted(watershed_ift(levels, lowest.astype(np.int32)))
    weight = 1.0 / (change + EDGE_MPS)
    regions = _counted(_Merging(regions, velocity_mps, weight).until(loss)[regions])
    for _ in range(CHOICES):
        regions = _nearest(regions, velocity_mps, _means(regions, velocity_mps, weight))
    regions = _smoothed(regions)
    return regions, _means(regions, velocity_mps, weight)


def _nearest(regions: np.ndarray, velocity: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Let each cell choose among the regions within reach the one whose velocity is nearest to its own."""
    reach = 2 * REACH_CELLS + 1
    off = [
        np.where(maximum_filter(regions == number, reach), np.abs(velocity - mean), np.inf)
        for number, mean in enumerate(means)
    ]
    return _counted(np.argmin(off, axis=0))


def _smoothed(regions: np.ndarray) -> np.ndarray:
    """Give each cell to the region that has most of its surroundings; thin regions vanish."""
    shares = [
        gaussian_filter((regions == number).astype(np.float64), EDGE_CELLS, mode="nearest")
        for number in range(regions.max() + 1)
    ]
    return _counted(np.argmax(shares, axis=0))


def _change(velocity: np.ndarray) -> np.ndarray:
    """Return the size of the largest change from each cell to its neighbours."""
    change = np.zeros((2, *velocity.shape))
    down, across = np.abs(np.diff(velocity, axis=0)), np.abs(np.diff(velocity, axis=1))
    change[0, :-1], change[1, :, :-1] = down, across
    change[0, 1:] = np.maximum(change[0, 1:], down)
    change[1, :, 1:] = np.maximum(change[1, :, 1:], across)
    return np.hypot(*change)


def _counted(regions: np.ndarray) -> np.ndarray:
    """Number the regions from zero without gaps."""
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape)


def _means(regions: np.ndarray, velocity: np.ndarray, weight: np.ndarray) -> np.ndarray:
    sums = np.bincount(regions.ravel(), (weight * velocity).ravel())
    return sums / np.bincount(regions.ravel(), weight.ravel())


class _Merging:
    """Merges neighbours, those first that lose least."""

    def __init__(self, regions: np.ndarray, velocity: np.ndarray, weight: np.ndarray) -> None:
        self._mean = _means(regions, velocity, weight)
        self._weight = np.bincount(regions.ravel(), weight.ravel())
        self._cells = np.bincount(regions.ravel())
        n = len(self._mean)
        # Length of the edge to each neighbour; the region that each has become; how often each has grown.
        self._edges: list[dict[int, int]] = [{} for _ in range(n)]
        self._became, self._grown = np.arange(n), np.zeros(n, int)
        for one, other in ((regions[1:], regions[:-1]), (regions[:, 1:], regions[:, :-1])):
            for i, j in zip(one[one != other].tolist(), other[one != other].tolist(), strict=True):
                self._edges[i][j] = self._edges[j][i] = self._edges[i].get(j, 0) + 1

    def until(self, loss: float) -> np.ndarray:
        """Merge while a merger loses at most ``loss``; return the region that each has become."""
        waiting = [self._merger(i, j) for i, edges in enumerate(self._edges) for j in edges if i < j]
        heapq.heapify(waiting)
        while waiting and waiting[0][0] <= loss:
            _, i, j, grown_i, grown_j = heapq.heappop(waiting)
            if (grown_i, grown_j) == (self._grown[i], self._grown[j]):
                self._merge(i, j)
                for other in self._edges[i]:
                    heapq.heappush(waiting, self._merger(i, other))
        return self._became

    def _merger(self, i: int, j: int) -> tuple[float, int, int, int, int]:
        cells = self._cells[i] * self._cells[j] / (self._cells[i] + self._cells[j])
        loss = cells * (self._mean[i] - self._mean[j]) ** 2 / self._edges[i][j]
        return float(loss), i, j, int(self._grown[i]), int(self._grown[j])

    def _merge(self, i: int, j: int) -> None:
        """Make region ``j`` a part of ``i``."""
        weights = self._weight[[i, j]]
        self._mean[i] = self._mean[[i, j]] @ weights / weights.sum()
        self._weight[i] += self._weight[j]
        self._cells[i] += self._cells[j]
        self._became[self._became == j] = i
        self._grown[[i, j]] += 1
        for other, length in self._edges[j].items():
            del self._edges[other][j]
            if other != i:
                self._edges[i][other] = self._edges[other][i] = self._edges[i].get(other, 0) + length
        self._edges[j] = {}
