"""The structured descent on misfits whose minimum is known, and the roughness it adds to them."""

from itertools import pairwise

import numpy as np
import pytest

from models.inversion.quasi_newton import Descent, Point
from models.inversion.roughness import Roughness

SHAPE = (9, 11)
BOUNDS = (1500.0, 4500.0)
RNG = np.random.default_rng(3)
# A badly conditioned quadratic misfit: curvatures over four decades, in directions of no meaning.
AXES = np.linalg.qr(RNG.normal(size=(99, 99)))[0]
CURVATURE = (AXES * np.logspace(-4, 0, 99)) @ AXES.T


def blocks() -> np.ndarray:
    velocity = np.full(SHAPE, 2000.0)
    velocity[4:] = 3000.0
    velocity[4:, 7:] = 3600.0
    return velocity


def misfit_of(truth):
    def misfit(velocity):
        off = (velocity - truth).ravel() / 100.0
        return float(off @ CURVATURE @ off) / 2 + 1e-9, (CURVATURE @ off).reshape(SHAPE) / 100.0

    return misfit


def descend(misfit, start, share, steps, contrast_mps=20.0, unit=None, noise=0.0):
    unit = np.full(SHAPE, 100.0) if unit is None else unit
    descent = Descent(misfit, noise, Roughness(SHAPE, contrast_mps), unit, BOUNDS)
    points = [Point.at(start, misfit)]
    for _ in range(steps):
        found = descent.step(points[-1], share)
        if found is None:
            break
        points.append(found)
    return points


def test_the_roughness_is_the_total_height_of_sharp_steps():
    # Down: 11 steps of 1000 or 1600 m/s; across: 5 of 600 m/s. One cell has both.
    corner = np.hypot(1600.0, 0.0)
    expected = 7 * 1000.0 + 4 * corner + 5 * 600.0
    assert Roughness(SHAPE, 1.0).value(blocks()) == pytest.approx(expected, rel=2e-3)
    assert Roughness(SHAPE, 1.0).value(np.full(SHAPE, 3000.0)) == 0.0


@pytest.mark.parametrize("contrast_mps", [20.0, 300.0])
def test_the_matrix_gives_the_derivative_of_the_roughness(contrast_mps):
    roughness = Roughness(SHAPE, contrast_mps)
    velocity, change = RNG.uniform(1500, 4500, SHAPE), RNG.normal(size=SHAPE)
    slope = float((roughness.matrix(velocity) @ velocity.ravel()) @ change.ravel())
    ahead, behind = (roughness.value(velocity + sign * 1e-3 * change) for sign in (1, -1))
    assert slope == pytest.approx((ahead - behind) / 2e-3, rel=1e-5)


def test_pairs_make_a_badly_conditioned_misfit_fall_fast():
    start = np.full(SHAPE, 2500.0)
    points = descend(misfit_of(blocks()), start, share=0.0, steps=60)
    assert points[-1].misfit < 1e-3 * points[0].misfit
    assert all(later.misfit < former.misfit for former, later in pairwise(points))
    assert len(points[-1].pairs) == 20


def test_the_roughness_finds_the_blocks_that_the_misfit_does_not_see():
    """Half of the directions have no curvature at all; noise in them stays without roughness."""
    seen = AXES[:, 50:]

    def misfit(velocity):
        off = seen.T @ (velocity - blocks()).ravel() / 100.0
        return float(off @ off) / 2 + 1e-9, (seen @ off).reshape(SHAPE) / 100.0

    start = blocks() + RNG.normal(0.0, 80.0, SHAPE)
    errors = {
        share: np.abs(descend(misfit, start, share, steps=100)[-1].velocity - blocks()).mean()
        for share in (0.0, 1.0)
    }
    assert errors[1.0] < 0.6 * errors[0.0]


def test_noise_in_the_misfit_makes_no_map_smoother():
    silent = misfit_of(blocks())

    def noisy(velocity):
        value, gradient = silent(velocity)
        return value + 100.0, gradient

    start = blocks() + RNG.normal(0.0, 80.0, SHAPE)
    expected = descend(silent, start, share=1.0, steps=60)[-1].velocity
    known, unknown = (
        descend(noisy, start, share=1.0, steps=60, noise=noise)[-1].velocity for noise in (100.0, 0.0)
    )
    off = [np.abs(velocity - blocks()).mean() for velocity in (expected, known, unknown)]
    assert off[1] < 1.5 * off[0] and off[2] > 3.0 * off[0], off


def test_a_share_that_changes_costs_no_pairs():
    misfit = misfit_of(blocks())
    descent = Descent(misfit, 0.0, Roughness(SHAPE, 20.0), np.full(SHAPE, 100.0), BOUNDS)
    point = Point.at(np.full(SHAPE, 2500.0), misfit)
    for n in range(40):
        found = descent.step(point, 0.03 if n % 2 else 0.003)
        assert found is not None and len(found.pairs) >= min(n, 19)
        point = found
    assert point.misfit < 0.05 * misfit(np.full(SHAPE, 2500.0))[0]


def test_the_map_stays_in_its_bounds():
    truth = blocks()
    truth[0] = 1000.0
    points = descend(misfit_of(truth), np.full(SHAPE, 2500.0), share=0.1, steps=40)
    assert points[-1].velocity.min() >= BOUNDS[0] and points[-1].velocity.max() <= BOUNDS[1]


def test_a_minimum_and_a_wrong_gradient_end_the_descent():
    at_minimum = descend(misfit_of(blocks()), blocks(), share=0.0, steps=3)
    assert len(at_minimum) == 1

    def uphill(velocity):
        value, gradient = misfit_of(blocks())(velocity)
        return value, -gradient

    assert len(descend(uphill, np.full(SHAPE, 2500.0), share=0.0, steps=3)) == 1
