"""The exact adjoint against finite differences of the engine."""

import numpy as np
import pytest
from small_waves import WAVES, earth

from physics.acquisition import Acquisition
from physics.engines.openfwi_adjoint import misfit_and_gradient, split_gradient
from physics.modelling import model_gathers

SMALL = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 20,
        "n_width": 24,
        "n_time": 202,
        "source_cells": [0, 17],
        "receiver_cells": [0, 5, 6, 23, 11, 2],
        "receiver_row": 3,
        "device_receivers": [[0, 1, 2], [3, 4, 5]],
    }
)


def layered() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.repeat(rng.uniform(2200, 4300, 5), 4)[:, None] + rng.uniform(-80, 80, (20, 24))).astype(
        np.float32
    )


def band_limited(shape: tuple[int, ...]) -> np.ndarray:
    """Noise below 40 Hz that fades at both ends, as a residual of waves does."""
    spectrum = np.fft.rfft(np.random.default_rng(1).normal(size=shape), axis=1)
    spectrum[:, np.fft.rfftfreq(shape[1], 1e-3) > 40.0] = 0.0
    return np.fft.irfft(spectrum, shape[1], axis=1) * np.hanning(shape[1])[None, :, None]


def linear(weights: np.ndarray):
    return lambda source, recorded: (float(np.sum(weights[source] * recorded)), weights[source])


def by_map(velocity: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    return misfit_and_gradient(velocity, SMALL, linear(weights))


def test_the_record_is_the_engines():
    records = []
    misfit_and_gradient(
        layered(), SMALL, lambda source, one: (records.append(one.copy()) or 0.0, np.zeros_like(one))
    )
    expected = model_gathers(layered()[None, None], SMALL)[0]
    assert np.linalg.norm(np.stack(records) - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("cell", ["border", "corner", "source", "receiver", "slowest", "inner"])
def test_the_gradient_of_a_cell_is_that_of_finite_differences(cell):
    """Border cells stand for all that is padded with them; the slowest one sets the sponge."""
    velocity, weights = layered().astype(np.float64), band_limited(SMALL.gather_shape)
    places = {
        "border": (12, 23),
        "corner": (19, 0),
        "source": (SMALL.source_row, 17),
        "receiver": (SMALL.receiver_row, 11),
        "slowest": np.unravel_index(velocity.argmin(), velocity.shape),
        "inner": (9, 9),
    }
    at = places[cell]
    _, gradient = by_map(velocity, weights)
    step = np.zeros_like(velocity)
    step[at] = 20.0
    ends = [by_map(velocity + sign * step, weights)[0] for sign in (1, -1)]
    scale = np.sqrt(np.mean(gradient**2))
    assert gradient[at] == pytest.approx((ends[0] - ends[1]) / 40.0, rel=0.02, abs=0.01 * scale)


def test_dot_product_of_a_change_and_a_residual():
    """<J dv, r> by central differences is <dv, J' r>, for the map and for the sponge."""
    velocity, weights = layered().astype(np.float64), band_limited(SMALL.gather_shape)

    def split(velocity_mps, slowest_mps):
        return split_gradient(velocity_mps, slowest_mps, SMALL, linear(weights))

    _, by_velocity, by_slowest = split(velocity, 2000.0)
    change = 10.0 * np.random.default_rng(2).normal(size=velocity.shape)
    ends = [split(velocity + sign * change, 2000.0)[0] for sign in (1, -1)]
    assert np.vdot(by_velocity, change) == pytest.approx((ends[0] - ends[1]) / 2, rel=5e-3)
    ends = [split(velocity, 2000.0 + sign * 500.0)[0] for sign in (1, -1)]
    assert by_slowest == pytest.approx((ends[0] - ends[1]) / 1000, rel=5e-2)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_residual_of_any_size_has_its_gradient(size):
    velocity, weights = layered(), band_limited(SMALL.gather_shape)
    _, expected = by_map(velocity, weights)
    _, found = by_map(velocity, size * weights)
    np.testing.assert_allclose(found / size, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_gradient_leads_down_the_misfit_of_another_map():
    wanted = model_gathers(earth(300.0)[None, None], WAVES)[0]

    def off(source, recorded):
        residual = recorded - wanted[source]
        return float(np.sum(residual**2)) / 2, residual

    start = earth(0.0).astype(np.float64)
    value, gradient, _ = split_gradient(start, 2600.0, WAVES, off)
    step = -50.0 * gradient / np.abs(gradient).max()
    slope = float(np.sum(gradient * step))
    after = split_gradient(start + 0.02 * step, 2600.0, WAVES, off)[0]
    assert after - value == pytest.approx(0.02 * slope, rel=0.1)
