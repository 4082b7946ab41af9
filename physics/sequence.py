"""The endless sequence of maps that a data set begins with, drawn by several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from physics.acquisition import Acquisition
from physics.families import generate_map

INDICES_A_TASK = 50


@dataclass(frozen=True)
class Sequence:
    """Samples 0, 1, 2 ... of each of ``families`` for ``seed``, drawn by ``physics.families.generate_map``."""

    families: tuple[str, ...]
    seed: int
    acquisition: Acquisition


def _draw_task(task: tuple[Sequence, int, int]) -> tuple[int, np.ndarray]:
    sequence, first, last = task
    maps = [
        generate_map(family, sequence.seed, index, sequence.acquisition)[0]
        for index in range(first, last)
        for family in sequence.families
    ]
    return first, np.stack(maps)


def draw_maps(sequence: Sequence, count: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``(indices, maps (n, nz, nx) m/s)`` of ``count`` samples per family, families in turn, in order."""
    tasks = [
        (sequence, first, min(first + INDICES_A_TASK, count)) for first in range(0, count, INDICES_A_TASK)
    ]
    # Spawn, not fork: a fork would copy the GPU's state.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for first, maps in pool.imap(_draw_task, tasks):
            indices = first + np.arange(len(maps) // len(sequence.families))
            yield np.repeat(indices, len(sequence.families)), maps
