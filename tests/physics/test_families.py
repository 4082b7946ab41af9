"""The velocity families: reproducible, within bounds, and of the benchmark's kind."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.families import FAMILIES, UnknownFamilyError, check_family, generate_map

SURVEY = Acquisition.openfwi()
# A range that a near-surface survey has.
SLOW = replace(SURVEY, velocity_min_mps=300.0, velocity_max_mps=800.0)
# SHA-256 of (seed, index) 0, 0; 3, 7; 2000, 29; 5, 801. The released models and data sets were drawn so.
RELEASED = {
    "flatvel_a": "c9ea8c8a227dc60a",
    "flatvel_b": "5b27e6519e240c7f",
    "curvevel_a": "c1713cfaf6d5ce8f",
    "curvevel_b": "cfbf74c2ea7d8b1f",
    "flatfault_a": "62a24fe5d52ba9cd",
    "flatfault_b": "66e25aa334683c26",
    "curvefault_a": "d30bf75284e5249f",
    "curvefault_b": "1536858964eb925b",
    "style_a": "8c33f0a9735d6901",
    "style_b": "83999527303d9b3f",
}


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_benchmarks_maps_stay_what_they_were(family):
    drawn = [generate_map(family, *of, SURVEY) for of in ((0, 0), (3, 7), (2000, 29), (5, 801))]
    assert hashlib.sha256(np.stack(drawn).tobytes()).hexdigest()[:16] == RELEASED[family]


class Impatient(np.random.Generator):
    """A generator that gives up on who draws again and again."""

    left = 5000

    def uniform(self, *arguments):
        self.left -= 1
        assert self.left, "draws for ever"
        return super().uniform(*arguments)


@pytest.mark.parametrize("survey", [SLOW, replace(SLOW, velocity_min_mps=795.0)], ids=["500", "5"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("style")])
def test_a_narrow_range_has_layers_too(family, survey, monkeypatch):
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Impatient(real(seed).bit_generator))
    low, high = survey.velocity_min_mps, survey.velocity_max_mps
    for index in range(20):
        one = generate_map(family, 5, index, survey)
        layers = np.unique(one)
        assert low <= layers[0] and layers[-1] <= high
        assert len(layers) > 1
        assert np.diff(layers).min() > 0.0


@pytest.mark.parametrize("family", ["style_a", "style_b"])
def test_style_is_stretched_to_the_range_of_the_survey(family):
    wide = replace(SURVEY, velocity_min_mps=1000.0, velocity_max_mps=7000.0)
    for index in range(10):
        known = (generate_map(family, 5, index, SURVEY) - 1500.0) / 3000.0
        for survey in (SLOW, wide):
            low, high = survey.velocity_min_mps, survey.velocity_max_mps
            np.testing.assert_allclose(
                (generate_map(family, 5, index, survey) - low) / (high - low), known, atol=1e-5
            )


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
