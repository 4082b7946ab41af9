"""Normalisation and metrics, against independent definitions."""

import tracemalloc

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from physics import metrics
from physics.acquisition import Acquisition
from physics.metrics import MetricError, mae, rmse, ssim
from physics.normalise import (
    denormalise_velocity,
    log_transform,
    normalise_velocity,
    scale_gather,
)

SURVEY = Acquisition.openfwi()


def some_maps(n=3, size=70):
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (n, size, size))
    return np.clip(true + rng.normal(0, 0.2, true.shape), -1, 1), true


def direct_ssim(x, y):
    """The definition, window by window: 11 x 11 Gaussian, zeros outside."""
    x, y = np.pad(x / 2 + 0.5, 5), np.pad(y / 2 + 0.5, 5)
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            c = (window * a * b).sum() - ma * mb
            values.append((2 * ma * mb + 1e-4) * (2 * c + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_mae_of_one_is_1500_metres_a_second():
    true_mps = np.full((1, 1, 70, 70), 3000.0)
    off = normalise_velocity(true_mps + 1500.0, SURVEY), normalise_velocity(true_mps, SURVEY)
    assert mae(*off) == pytest.approx(1.0)
    assert rmse(*off) == pytest.approx(1.0)


def test_velocity_normalisation_is_the_benchmarks_and_inverts():
    np.testing.assert_allclose(normalise_velocity(np.array([1500.0, 3000.0, 4500.0]), SURVEY), [-1, 0, 1])
    some = np.linspace(1500, 4500, 7)
    np.testing.assert_allclose(denormalise_velocity(normalise_velocity(some, SURVEY), SURVEY), some)


def test_gather_normalisation():
    gather = np.array([-27.0, -1.0, 0.0, 1.0, 57.0])
    np.testing.assert_allclose(log_transform(gather)[[1, 2, 3]], [-np.log(2), 0, np.log(2)])
    scaled = scale_gather(gather, (-np.log(28.0), np.log(58.0)))
    np.testing.assert_allclose(scaled[[0, -1]], [-1, 1])
    assert scaled[2] == pytest.approx(2 * np.log(28.0) / (np.log(28.0) + np.log(58.0)) - 1)


def test_ssim_is_its_definition():
    predicted, true = some_maps(1, 24)
    assert ssim(predicted, true) == pytest.approx(direct_ssim(predicted[0], true[0]), abs=1e-10)


def test_ssim_agrees_with_an_independent_program():
    """Zeros around the maps give scikit-image the zero padding of the definition: every pixel counts."""
    predicted, true = some_maps(1)
    _, theirs = structural_similarity(
        np.pad(predicted[0] / 2 + 0.5, 10),
        np.pad(true[0] / 2 + 0.5, 10),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    assert ssim(predicted, true) == pytest.approx(theirs[10:-10, 10:-10].mean(), abs=1e-10)


def test_equal_maps_are_perfect_and_order_does_not_matter():
    predicted, true = some_maps()
    assert ssim(true, true) == pytest.approx(1.0)
    assert mae(true, true) == rmse(true, true) == 0.0
    assert ssim(predicted, true) == pytest.approx(ssim(true, predicted))


def test_a_batch_is_the_mean_of_its_maps():
    predicted, true = some_maps()
    assert ssim(predicted, true) == pytest.approx(
        np.mean([ssim(p, t) for p, t in zip(predicted, true, strict=True)])
    )
    assert mae(predicted, true) == pytest.approx(np.abs(predicted - true).mean())


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_many_maps_are_compared_a_few_at_a_time(monkeypatch, at_once):
    predicted, true = some_maps(7, 24)
    together = ssim(predicted, true)
    monkeypatch.setattr(metrics, "_MAPS_AT_ONCE", at_once)
    assert ssim(predicted, true) == pytest.approx(together, rel=1e-14)
    assert ssim(predicted[:, None], true[:, None]) == ssim(predicted, true)
    assert ssim(predicted[0], true[0]) == pytest.approx(direct_ssim(predicted[0], true[0]), abs=1e-10)


def test_memory_does_not_grow_with_the_number_of_maps(monkeypatch):
    monkeypatch.setattr(metrics, "_MAPS_AT_ONCE", 10)
    peaks = []
    for n in (10, 100):
        maps = np.zeros((n, 70, 70), np.float32)
        tracemalloc.start()
        ssim(maps, maps)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_maps_of_different_shape_are_refused():
    with pytest.raises(MetricError, match=r"one shape, got \(2, 70, 70\) and \(70, 70\)"):
        mae(np.zeros((2, 70, 70)), np.zeros((70, 70)))


def test_nothing_has_no_error():
    with pytest.raises(MetricError, match=r"at least one map, got \(0, 70, 70\)"):
        ssim(np.zeros((0, 70, 70)), np.zeros((0, 70, 70)))
