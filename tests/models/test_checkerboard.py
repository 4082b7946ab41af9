"""The released decoder leaves no checkerboard: its patches of five cells are not visible in its maps."""

import numpy as np
import pytest

import epic
from models.evaluation.checkerboard import pattern_mps
from testbed.samples import load_samples


def test_a_pattern_is_measured_whatever_lies_under_it():
    rng = np.random.default_rng(0)
    ground = np.cumsum(rng.normal(0.0, 5.0, (30, 70, 70)), axis=2)
    pattern = 3.0 * np.cos(2 * np.pi * np.arange(70) / 5 + rng.uniform(0, 6, (30, 1, 1)))
    assert pattern_mps(ground + pattern, 2, 14) == pytest.approx(3.0 / np.sqrt(2), rel=0.15)
    assert pattern_mps(ground, 2, 14) < 0.5


@pytest.mark.slow
def test_the_released_decoder_leaves_less_than_maps_are_stored_to():
    model = epic.load_model("epic-small-128")
    maps = np.stack([model.invert(sample.gather).velocity_mps for sample in load_samples()])
    maps = maps.reshape(-1, 70, 70)
    # It was 1.7 m/s at five cells along x, without a layer at the map's resolution.
    assert max(pattern_mps(maps, axis, waves) for axis in (1, 2) for waves in (14, 28)) < 1.0
