"""Descent reaches a minimum, makes do with a gradient that is a little wrong, and says when nothing leads down."""

from itertools import pairwise

import numpy as np
import pytest

from models.inversion.lbfgs import Point, minimise


def rosenbrock(x):
    return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2), None


def rosenbrock_gradient(x, about):
    return np.array([-400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]), 200 * (x[1] - x[0] ** 2)])


def begin(x, value):
    return Point(np.array(x), *value(np.array(x)))


def test_a_bent_valley_is_followed_to_its_end():
    found = minimise(begin([-1.2, 1.0], rosenbrock), rosenbrock, rosenbrock_gradient, 100, longest=0.5)
    np.testing.assert_allclose(found.x, [1.0, 1.0], atol=1e-4)


def test_it_never_goes_up_and_stops_after_the_steps_asked_for():
    seen = []
    start = begin([-1.2, 1.0], rosenbrock)
    found = minimise(start, rosenbrock, rosenbrock_gradient, 7, 0.5, seen.append)
    values = [start.value, *(point.value for point in seen)]
    assert values == sorted(values, reverse=True)
    assert found == seen[-1] and [point.steps for point in seen] == list(range(1, 8))


def test_no_step_is_longer_than_allowed():
    value = lambda x: (float(x @ x), None)  # noqa: E731
    places = [np.full(4, 100.0)]
    minimise(begin(places[0], value), value, lambda x, _: 2 * x, 5, 0.5, lambda point: places.append(point.x))
    lengths = [np.sqrt(np.mean((b - a) ** 2)) for a, b in pairwise(places)]
    assert len(lengths) == 5 and max(lengths) == pytest.approx(0.5)


def test_a_gradient_that_is_a_little_wrong_will_do():
    curvatures = np.geomspace(1, 100, 20)
    value = lambda x: (float(curvatures @ x**2) / 2, None)  # noqa: E731
    wrong = np.random.default_rng(0).normal(1.0, 0.1, 20)
    start = begin(np.ones(20), value)
    found = minimise(start, value, lambda x, _: wrong * curvatures * x, 40, 1.0)
    assert found.value < 1e-3 * start.value


def test_where_nothing_leads_down_it_stays():
    start = begin([3.0], lambda x: (float(x @ x), None))
    found = minimise(start, lambda x: (float(x @ x), None), lambda x, _: -2 * x, 10, 1.0)
    assert found is start and found.steps == 0
