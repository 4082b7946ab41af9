"""Limited-memory BFGS (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MEMORY = 10
# Armijo condition, c1.
SUFFICIENT = 1e-4
SHORTEN = 0.35
MOST_TRIES = 4
# Least cosine between a step and its change of gradient; other pairs are not stored.
FLATTEST = 1e-3


@dataclass(frozen=True)
class Point:
    """A point ``x``, its ``value``, the inputs of its gradient (``about``), and the steps that led to it."""

    x: np.ndarray
    value: float
    about: Any
    steps: int = 0


def minimise(
    now: Point,
    value: Callable[[np.ndarray], tuple[float, Any]],
    gradient: Callable[[np.ndarray, Any], np.ndarray],
    iterations: int,
    longest: float,
    on_iteration: Callable[[Point], None] = lambda point: None,
) -> Point:
    """Minimise from the point ``now`` in at most ``iterations`` steps; return the lowest point found.

    The gradient need not be exact. If the L-BFGS direction does not descend, the memory is dropped. If the negative
    gradient does not descend either, the search ends. If nothing descends from the start, ``now`` is returned.

    Args:
        value: ``value(x)`` returns the value and the data that the gradient needs.
        gradient: ``gradient(x, about)`` takes these data; it is called at accepted points only.
        longest: Greatest step length (root mean square); the first step is a third of it.
    """
    slope = gradient(now.x, now.about)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    while now.steps < iterations:
        direction = -_curved(slope, seen)
        reach = longest if seen else longest / 3
        if not seen or _rms(direction) > reach:
            direction *= reach / max(_rms(direction), 1e-30)
        after = _down(now, direction, float(np.vdot(direction, slope)), value)
        if after is None:
            if not seen:
                break
            seen = []
            continue
        on_iteration(after)
        if after.steps == iterations:
            return after
        slope_after = gradient(after.x, after.about)
        moved, turned = after.x - now.x, slope_after - slope
        if np.vdot(moved, turned) > FLATTEST * np.linalg.norm(moved) * np.linalg.norm(turned):
            seen = [*seen, (moved, turned)][-MEMORY:]
        now, slope = after, slope_after
    return now


def _curved(slope: np.ndarray, seen: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Multiply ``slope`` by the inverse Hessian approximation from the steps ``seen`` (two-loop recursion)."""
    result = slope.astype(np.float64, copy=True)
    shares = []
    for moved, turned in reversed(seen):
        share = np.vdot(moved, result) / np.vdot(moved, turned)
        result -= share * turned
        shares.append(share)
    if seen:
        moved, turned = seen[-1]
        result *= np.vdot(moved, turned) / np.vdot(turned, turned)
    for (moved, turned), share in zip(seen, reversed(shares), strict=True):
        result += moved * (share - np.vdot(turned, result) / np.vdot(moved, turned))
    return result


def _down(now: Point, direction: np.ndarray, slope: float, value: Callable) -> Point | None:
    """Return the first point along ``direction`` that meets the Armijo condition; None after a few failed trials."""
    share = 1.0
    for _ in range(MOST_TRIES if slope < 0 else 0):
        x = now.x + share * direction
        found, about = value(x)
        if found <= now.value + SUFFICIENT * share * slope:
            return Point(x, found, about, now.steps + 1)
        share *= SHORTEN
    return None


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
