"""A smeared map is split into its regions, and their velocities and edges are fitted together."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from models.inversion.layered import LayeredFit, LayeredMap
from models.inversion.regions import split

BOUNDS = (1500.0, 4500.0)
DEPTH, ACROSS = np.mgrid[:40, :50]


def layers(first=12.0, velocities=(1800.0, 2600.0, 3400.0), slope=0.1):
    """Three layers whose upper edge dips and whose lower one is flat, 14 cells below where it begins."""
    number = (first + slope * ACROSS < DEPTH).astype(int) + (first + 14 < DEPTH)
    return np.array(velocities)[number]


class Smeared:
    """A linear stand-in for waves: the recording is the smeared map, the misfit half its mean square and ``noise``."""

    def __init__(self, truth, noise=0.0):
        self._recorded, self._noise = self.model(truth), noise

    @staticmethod
    def model(velocity):
        return gaussian_filter(velocity, 2.0, mode="nearest")

    def residual(self, gather):
        return (gather - self._recorded) / 100.0

    def value(self, gather):
        return float(np.mean(np.square(self.residual(gather)))) / 2 + self._noise

    def beyond_noise(self, value):
        return value - self._noise


def fit(truth, start, noise=0.0):
    misfit = Smeared(truth, noise)
    return LayeredFit(start, BOUNDS, misfit, misfit.model)


def test_smeared_layers_with_noise_are_split_where_they_meet():
    truth = layers()
    noise = np.random.default_rng(0).normal(scale=5.0, size=truth.shape)
    regions, velocities = split(gaussian_filter(truth, 0.7) + noise, 10_000.0)
    assert len(velocities) == 3
    np.testing.assert_allclose(np.sort(velocities), [1800, 2600, 3400], atol=25)
    assert np.mean(np.abs(velocities[regions] - truth) > 100) < 0.02, "an edge is off by less than a cell"


def test_no_region_is_made_of_the_smear_between_two_layers():
    """Cells of the ramp lie between both velocities over 6 rows: a layer of that velocity would fit them."""
    truth = layers(velocities=(1800.0, 3400.0, 3400.0), slope=0.0)
    ramp = gaussian_filter(truth, (3.0, 0.0))
    _, velocities = split(ramp, 10_000.0)
    np.testing.assert_allclose(np.sort(velocities), [1800, 3400], atol=60)


def test_a_loss_says_which_contrasts_are_kept():
    truth = layers(velocities=(1800.0, 1840.0, 2600.0))
    assert [len(split(truth, loss)[1]) for loss in (1.0, 10_000.0)] == [3, 2]


def test_a_uniform_map_is_one_region():
    regions, velocities = split(np.full((20, 30), 2000.0), 10_000.0)
    assert not regions.any() and velocities == pytest.approx([2000.0])


def test_an_edge_within_a_cell_gives_it_a_value_between():
    regions = (DEPTH >= 20).astype(int)
    drawn = LayeredMap(regions, np.array([2000.0, 3000.0]), BOUNDS)
    np.testing.assert_allclose(drawn.draw(drawn.start), np.where(regions, 3000.0, 2000.0))
    parameters = drawn.start.copy()
    parameters[2:] = 0.25 / 0.7
    raised = drawn.draw(parameters)
    np.testing.assert_allclose(raised[19], 2250.0)
    np.testing.assert_allclose(raised[[18, 20]], [[2000.0] * 50, [3000.0] * 50])


@pytest.mark.parametrize("noise", [0.0, 100.0])
def test_velocities_and_depths_that_are_both_wrong_are_found_together(noise):
    """Noise leaves a misfit that no map lowers; the fit goes on until nothing else is left."""
    truth, start = layers(), gaussian_filter(layers(10.6, (1830.0, 2500.0, 3500.0), 0.15), 1.0)
    layered = fit(truth, start, noise)
    before = np.abs(start - truth).mean()
    misfits = [layered.now.misfit - noise]
    for _ in range(6):
        if not layered.step():
            break
        misfits.append(layered.now.misfit - noise)
    assert layered.regions == 3
    assert misfits == sorted(misfits, reverse=True)
    assert misfits[-1] < 0.01 * misfits[0]
    assert np.abs(layered.now.velocity - truth).mean() < 0.15 * before


def test_a_map_that_fits_is_left_as_it_is():
    truth = layers(slope=0.0)
    layered = fit(truth, truth)
    layered.step()
    np.testing.assert_allclose(layered.now.velocity, truth, atol=1.0)
