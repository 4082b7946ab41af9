"""The velocity families: reproducible, within bounds, and of the benchmark's kind.

Expected figures are those of genuine OpenFWI maps (measured 2026-11-29; see ``benchmarks/families.py``).
"""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.families import FAMILIES, REGISTRY, UnknownFamilyError, check_family, generate_map
from physics.families.layers import filled_tops
from physics.files.openfwi_files import family_file_names

SURVEY = Acquisition.openfwi()
# The velocity range of a near-surface survey.
SLOW = replace(SURVEY, velocity_min_mps=300.0, velocity_max_mps=800.0)


def maps(family: str, n: int = 60, survey: Acquisition = SURVEY) -> np.ndarray:
    return np.stack([generate_map(family, 5, index, survey)[0] for index in range(n)])


def thicknesses(column: np.ndarray) -> np.ndarray:
    """Cells of each layer from the top."""
    return np.diff([0, *(np.flatnonzero(np.diff(column)) + 1), len(column)])


def increasing_share(drawn: np.ndarray) -> float:
    """Share of the vertical steps between cells that do not decrease."""
    return float((np.diff(drawn, axis=1) >= 0).mean())


def correlation(field: np.ndarray, lag: int, axis: int) -> float:
    """Mean autocorrelation of ``(n, nz, nx)`` fields of zero mean at ``lag`` cells along ``axis``."""
    first = np.take(field, range(field.shape[axis] - lag), axis)
    second = np.take(field, range(lag, field.shape[axis]), axis)
    return float(((first * second).mean(axis=(1, 2)) / (field**2).mean(axis=(1, 2))).mean())


def without_trend(drawn: np.ndarray) -> np.ndarray:
    """Maps less their own quadratic trend with depth."""
    z = np.linspace(-1, 1, drawn.shape[1])
    powers = np.repeat(np.stack([z**0, z, z**2], axis=1), drawn.shape[2], axis=0)
    flat = drawn.reshape(len(drawn), -1).astype(np.float64).T
    coefficients = np.linalg.lstsq(powers, flat, rcond=None)[0]
    return (flat - powers @ coefficients).T.reshape(drawn.shape)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_stretched_to_the_range_of_the_survey(family):
    wide = replace(SURVEY, velocity_min_mps=1000.0, velocity_max_mps=7000.0)
    known = (maps(family, 10) - 1500.0) / 3000.0
    for survey in (SLOW, wide, replace(SLOW, velocity_min_mps=795.0)):
        low, high = survey.velocity_min_mps, survey.velocity_max_mps
        share = (maps(family, 10, survey) - low) / (high - low)
        np.testing.assert_allclose(share, known, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_stretched_to_the_grid_of_the_survey(family):
    """A grid of twice the cells has the same structures: every second cell shows the small map."""
    fine = replace(SURVEY, n_depth=140, n_width=140)
    for index in range(5):
        known = generate_map(family, 5, index, SURVEY)[0]
        again = generate_map(family, 5, index, fine)[0][::2, ::2]
        close = np.abs(again - known) < 60
        assert close.mean() > 0.8
    narrow = replace(
        SURVEY,
        n_depth=31,
        n_width=47,
        source_cells=(0, 46),
        receiver_cells=(3, 9),
        device_receivers=((0, 1),),
    )
    assert generate_map(family, 5, 0, narrow).shape == (1, 31, 47)


def test_maps_are_drawn_quickly():
    """About a millisecond a map; the bound leaves room for a busy machine."""
    start = time.process_time()
    for family in FAMILIES:
        maps(family, 10)
    assert (time.process_time() - start) / 100 < 0.02


def test_flatvel_has_flat_layers_of_nearly_equal_thickness():
    for family in ("flatvel_a", "flatvel_b"):
        drawn = maps(family, 200)
        assert (drawn == drawn[:, :, :1]).all()
    layers = maps("flatvel_a", 300)[:, :, 0]
    counts = np.array([len(np.unique(column)) for column in layers])
    assert set(counts) <= set(range(2, 9))
    shares = np.bincount(counts, minlength=9)[3:9] / len(counts)
    np.testing.assert_allclose(shares, [0.13, 0.145, 0.185, 0.225, 0.21, 0.105], atol=0.08)
    interior = [thicknesses(column)[1:-1] for column in layers if len(thicknesses(column)) > 3]
    assert np.median(np.concatenate(interior)) == pytest.approx(12, abs=1)
    assert np.median([np.ptp(t) for t in interior]) <= 2
    assert min(t.min() for t in interior) >= 8


def test_flatvel_a_increases_over_the_whole_range():
    drawn = maps("flatvel_a", 300)
    assert increasing_share(drawn) == 1.0
    assert np.median(drawn[:, 0]) == pytest.approx(1833, abs=120)
    assert np.median(drawn[:, -1]) == pytest.approx(3906, abs=150)
    steps = np.concatenate([np.diff(np.unique(one)) for one in drawn])
    assert (steps == np.round(steps)).all()
    np.testing.assert_allclose(np.percentile(steps, [25, 50, 75]), [126, 302, 591], rtol=0.2)


def test_curvevel_a_increases_and_has_all_its_layers_in_the_map():
    drawn = maps("curvevel_a", 200)
    assert increasing_share(drawn) == 1.0
    counts = np.bincount([len(np.unique(one)) for one in drawn], minlength=9)
    assert counts[4:9].min() > 0.12 * len(drawn)


def interfaces(one: np.ndarray) -> list[np.ndarray]:
    """Depths (cells, one a column) of the interfaces of an increasing map that cross it in full."""
    depths = [(one < velocity).sum(axis=0) for velocity in np.unique(one)[1:]]
    return [depth for depth in depths if depth.min() > 0 and depth.max() < one.shape[0]]


def test_curvevel_folds_are_high_tight_and_nearly_parallel():
    heights, turns, differences = [], [], []
    for one in maps("curvevel_a", 200):
        whole = interfaces(one)
        for depth in whole[:1]:
            heights.append(np.ptp(depth))
            slope = np.sign(np.diff(depth)[np.diff(depth) != 0])
            turns.append((np.diff(slope) != 0).sum())
        for above, below in pairwise(whole):
            differences.append(np.ptp(below - above) / 2)
    np.testing.assert_allclose(np.percentile(heights, [25, 50, 75]), [13, 18, 26], rtol=0.25)
    assert 2 <= np.median(turns) <= 5
    assert np.median(differences) == pytest.approx(2.1, abs=0.8)


@pytest.mark.parametrize("family", ["flatvel_b", "curvevel_b"])
def test_vel_b_has_velocities_in_any_order(family):
    inverted = (np.diff(maps(family), axis=1) < 0).any(axis=(1, 2))
    assert inverted.mean() > 0.8


def steps_of_a_faults(count: int) -> list[tuple[int, float, float]]:
    """Clear steps at the edges and in the middle: row below it, share of the cell above, its own."""
    found = []
    for one in maps("flatfault_a", count):
        for column in (one[:, 0], one[:, 35], one[:, -1]):
            for row in range(3, 66):
                step = column[row + 1] - column[row - 2]
                flat = np.ptp(column[row - 3 : row - 1]) + np.ptp(column[row + 1 : row + 4])
                if step > 300 and flat < 0.01:
                    above, own = (column[row - 1 : row + 1] - column[row - 2]) / step
                    found.append((row, above, own))
    return found


def test_steps_of_a_faults_read_as_in_the_benchmark():
    """Where the ground is not raised, where it is or slid by whole cells, and where it slid by half cells.

    The shares are those of 200 genuine maps, at the rows where their layers begin.
    """
    steps = steps_of_a_faults(200)
    genuine = {
        15: [(0.0535, 0.9465), (0.1248, 0.9550), (0.0087, 0.5735)],
        36: [(0.0535, 0.9465), (0.2281, 0.9674), (0.0213, 0.6771)],
        55: [(0.0535, 0.9465), (0.3216, 0.9785), (0.0325, 0.7706)],
    }
    for row, known in genuine.items():
        shares = np.array([step[1:] for step in steps if step[0] == row])
        off = np.abs(shares[:, None] - np.array(known)[None]).max(axis=2)
        # A few are beside a fault.
        assert len(shares) > 10 and (off.min(axis=1) < 3e-3).mean() > 0.8
        assert (off < 3e-3).any(axis=0)[:2].all()


def test_layers_of_a_faults_are_dealt_out_as_in_the_benchmark():
    """Of 764 layers in 191 genuine maps 35 % have the least thickness of 15 cells, and 3.4 % have 25."""
    tops = [filled_tops(np.random.default_rng(n), 4, 0.86) for n in range(2000)]
    thicknesses = np.diff(tops, axis=1, prepend=0, append=70).ravel()
    assert thicknesses.min() == 15 and thicknesses.max() == 25
    shares = [(thicknesses == cells).mean() for cells in (15, 16, 17, 25)]
    np.testing.assert_allclose(shares, [0.349, 0.177, 0.114, 0.031], atol=0.03)


def test_flatfault_a_has_four_layers_and_a_small_throw():
    drawn = maps("flatfault_a", 200)
    counts, throws = [], []
    for one in drawn:
        values, cells = np.unique(one, return_counts=True)
        plateaus = values[cells > 150]
        counts.append(len(plateaus))
        middles = (plateaus[1:] + plateaus[:-1]) / 2
        left, right = ((one[:, [side]] < middles).sum(axis=0) for side in (0, -1))
        throws.append(np.median(np.abs(right - left)))
    assert np.mean(np.array(counts) == 4) > 0.7
    throws = np.array(throws)
    assert np.percentile(throws, 95) <= 11
    assert 0.1 < (throws == 0).mean() < 0.4, "a block inside the map leaves its edges level"
    assert np.median(throws[throws > 0]) == pytest.approx(7.5, abs=1)


def test_a_fault_velocities_are_slow_above_and_fast_below():
    for one in maps("curvefault_a", 60):
        assert one[0].mean() < 3000 <= one[-1].mean()


@pytest.mark.parametrize("family", ["flatfault_b", "curvefault_b"])
def test_b_faults_have_two_blocks_of_their_own_velocities_and_mostly_increase(family):
    drawn = maps(family, 100)
    counts = np.array([len(np.unique(one)) for one in drawn])
    assert counts.max() <= 16
    assert np.median(counts) in (11, 12)
    assert (drawn == np.round(drawn)).all()
    assert 0.96 < increasing_share(drawn) < 0.9999
    sideways = (np.diff(drawn, axis=2) != 0).any(axis=(1, 2))
    assert sideways.all()


@pytest.mark.parametrize(
    ("family", "spread_mps", "gradient_mps", "steepest_mps", "kurtosis"),
    [("style_a", 329, 25, 150, -0.7), ("style_b", 207, 29.5, 402, -1.2)],
)
def test_style_is_a_scene_on_a_gradient(family, spread_mps, gradient_mps, steepest_mps, kurtosis):
    drawn = maps(family, 100)
    field = without_trend(drawn)
    gradient = np.polyfit(np.arange(70), drawn.mean(axis=(0, 2)), 1)[0]
    assert gradient == pytest.approx(gradient_mps, rel=0.15)
    assert field.std(axis=(1, 2)).mean() == pytest.approx(spread_mps, rel=0.15)
    steepest = np.percentile(np.abs(np.diff(drawn, axis=2)), 99)
    assert steepest == pytest.approx(steepest_mps, rel=0.2)
    scaled = field / field.std(axis=(1, 2), keepdims=True)
    assert (scaled**4).mean() - 3 == pytest.approx(kurtosis, abs=0.5)
    assert 0 < (scaled**3).mean() < 0.8


@pytest.mark.parametrize(
    ("family", "across"),
    [("style_a", (0.986, 0.943, 0.878, 0.710, 0.466)), ("style_b", (0.878, 0.762, 0.644, 0.447, 0.252))],
)
def test_style_correlates_as_the_benchmark(family, across):
    field = without_trend(maps(family, 100))
    drawn = [correlation(field, lag, axis=2) for lag in (1, 2, 3, 5, 8)]
    np.testing.assert_allclose(drawn, across, atol=0.1)


def test_every_family_is_registered_under_its_own_name():
    for name, family in REGISTRY.items():
        assert family.name == name
        index = 2 if family.map_files.startswith("vel") else 3
        assert family_file_names(name, 2)[1] == family.map_files.format(index)


def test_family_names_are_forgiving_and_errors_list_them():
    assert check_family("FlatVel-A") == "flatvel_a"
    with pytest.raises(UnknownFamilyError, match=r"expected one of flatvel_a, .*got 'salt'"):
        check_family("salt")
