"""The velocity families: reproducible, within bounds, and of the benchmark's kind."""

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.families import FAMILIES, UnknownFamilyError, check_family, generate_map

SURVEY = Acquisition.openfwi()


def maps(family: str, n: int = 60) -> np.ndarray:
    return np.stack([generate_map(family, 5, index, SURVEY)[0] for index in range(n)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_is_a_function_of_family_seed_and_index(family):
    one = generate_map(family, 5, 3, SURVEY)
    assert one.shape == SURVEY.map_shape
    assert one.dtype == np.float32
    assert 1500 <= one.min() <= one.max() <= 4500
    np.testing.assert_array_equal(one, generate_map(family, 5, 3, SURVEY))
    assert (one != generate_map(family, 5, 4, SURVEY)).any()
    assert (one != generate_map(family, 6, 3, SURVEY)).any()


def test_families_of_one_seed_differ():
    first = [generate_map(family, 0, 0, SURVEY) for family in FAMILIES]
    assert all((a != b).any() for i, a in enumerate(first) for b in first[:i])


@pytest.mark.parametrize("family", ["flatvel_a", "curvevel_a"])
def test_vel_a_increases_with_depth(family):
    assert (np.diff(maps(family), axis=1) >= 0).all()


@pytest.mark.parametrize("family", ["flatvel_b", "curvevel_b", "flatfault_b", "curvefault_b"])
def test_b_families_are_not_monotone(family):
    inverted = (np.diff(maps(family), axis=1) < 0).any(axis=(1, 2))
    assert inverted.mean() > 0.6


@pytest.mark.parametrize(("family", "fewest", "most"), [("flatvel_a", 2, 6), ("flatvel_b", 2, 6)])
def test_flat_families_have_flat_layers(family, fewest, most):
    drawn = maps(family)
    assert (drawn == drawn[:, :, :1]).all()
    layers = [len(np.unique(one)) for one in drawn]
    assert set(layers) == set(range(fewest, most + 1))


def test_layers_can_be_resolved_at_15_hz():
    for column in maps("flatvel_b")[:, :, 0]:
        changes = np.flatnonzero(np.diff(column))
        assert np.diff([-1, *changes, 69]).min() >= 4
        assert np.abs(np.diff(column)[changes]).min() >= 100


def test_curves_span_five_to_ten_rows():
    """The deepest boundary that crosses the whole map bends by 5 to 10 rows (and rounding)."""
    spans = []
    for one in maps("curvevel_a"):
        first_layer = (one == one[0, 0]).sum(axis=0)
        if first_layer.min() > 0 and first_layer.max() < 70 and (one[0] == one[0, 0]).all():
            spans.append(first_layer.max() - first_layer.min())
    assert len(spans) > 20
    assert min(spans) >= 4
    assert max(spans) <= 11


def test_faults_break_layers_sideways():
    """A flat layer cut by a fault changes from one column to the next; an unbroken one does not."""
    broken = (np.diff(maps("flatfault_a"), axis=2) != 0).any(axis=(1, 2))
    assert broken.mean() > 0.9


@pytest.mark.parametrize(
    ("family", "sigma_mps", "correlation_cells"), [("style_a", 183, 3.5), ("style_b", 158, 2.0)]
)
def test_style_is_a_random_field_on_a_trend(family, sigma_mps, correlation_cells):
    drawn = maps(family)
    field = drawn - drawn.mean(axis=2, keepdims=True)
    assert np.diff(drawn.mean(axis=2)[:, [0, -1]], axis=1).mean() > 500, "the trend grows with depth"
    spread = np.sqrt(sigma_mps**2 + (58**2 if family == "style_b" else 0))
    assert field.std() == pytest.approx(spread, rel=0.12)
    lags = [float((field[:, :, lag:] * field[:, :, : 70 - lag]).mean() / field.var()) for lag in range(8)]
    crossing = next(lag for lag, value in enumerate(lags) if value < np.exp(-1))
    assert correlation_cells - 1 <= crossing <= correlation_cells + 1.5


def test_all_families_together_look_like_the_benchmark():
    together = np.stack([maps(family, 30) for family in FAMILIES])
    assert together.mean() == pytest.approx(2942, rel=0.05)
    assert together.std() == pytest.approx(814, rel=0.08)


def test_family_names_are_forgiving_and_errors_list_them():
    assert check_family("FlatVel-A") == "flatvel_a"
    with pytest.raises(UnknownFamilyError, match=r"expected one of flatvel_a, .*got 'salt'"):
        check_family("salt")
