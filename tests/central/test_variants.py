"""Variants of a survey's maps: of the same kind, within bounds, and as far off as the map is unsure."""

import numpy as np
import pytest

from central.learning.variants import draw_variant
from physics.acquisition import Acquisition

SURVEY = Acquisition.openfwi()


@pytest.fixture
def layers():
    """Three layers of 2000, 3000 and 4000 m/s ``(nz, nx)``."""
    return np.repeat([2000.0, 3000.0, 4000.0], [25, 25, 20])[:, None] * np.ones(SURVEY.n_width)


def drawn(velocity_mps, uncertainty_mps, count=20):
    rng = np.random.default_rng(1)
    uncertainty = np.broadcast_to(uncertainty_mps, velocity_mps.shape)
    return np.stack([draw_variant(velocity_mps, uncertainty, rng, SURVEY) for _ in range(count)])


def test_a_sure_map_keeps_its_velocities_and_moves_its_edges(layers):
    found = drawn(layers, 0.0)
    assert np.abs(found[:, [2, 37, -2]] - layers[[2, 37, -2]]).max() < 1.0
    depths = (found < 2500.0).sum(axis=1)
    assert depths.std() > 0.5 and abs(depths.mean() - 25) < 1.5


def test_an_unsure_layer_changes_as_a_whole_and_by_as_much_as_it_is_unsure(layers):
    unsure = np.where(layers == 3000.0, 200.0, 0.0)
    middle = drawn(layers, unsure, 60)[:, 37]
    assert middle.mean(axis=1).std() == pytest.approx(200.0, rel=0.35)
    assert np.median(np.ptp(middle, axis=1)) < 30.0


def test_half_are_mirrored_and_all_are_within_the_surveys_bounds():
    slope = np.tile(np.linspace(1600.0, 4400.0, SURVEY.n_width), (SURVEY.n_depth, 1))
    found = drawn(slope, 900.0, 60)
    mirrored = found[:, :, 0].mean(axis=1) > found[:, :, -1].mean(axis=1)
    assert 0.25 < mirrored.mean() < 0.75
    assert found.min() >= SURVEY.velocity_min_mps and found.max() <= SURVEY.velocity_max_mps
    assert found.dtype == np.float32 and found.flags.c_contiguous
