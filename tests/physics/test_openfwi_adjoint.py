"""The exact adjoint: against the derivative that the backend makes of the engine, and against finite differences."""

import numpy as np
import pytest
from keras import ops
from small_waves import WAVES, earth

from models.inversion.refinement import value_and_derivative
from physics.acquisition import Acquisition
from physics.engines.openfwi import record
from physics.engines.openfwi_adjoint import adjoint
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


@pytest.fixture(scope="module")
def waves():
    return adjoint(SMALL, 4500.0)


def test_the_record_is_the_engines(waves):
    records = []
    waves(
        layered(),
        float(layered().min()),
        lambda source, one: (records.append(one) or 0.0, np.zeros_like(one)),
    )
    expected = model_gathers(layered()[None, None], SMALL)[0]
    assert np.linalg.norm(np.stack(records) - expected) < 1e-5 * np.linalg.norm(expected)


def test_the_gradient_is_the_backends_own_derivative_of_the_engine(waves):
    """Border cells too, which stand for all that is padded with them, and cells with a source."""
    velocity, weights = layered(), band_limited(SMALL.gather_shape)
    derivative = value_and_derivative(
        lambda v: ops.sum(record(v, SMALL, 4500.0) * ops.convert_to_tensor(weights, "float32"))
    )
    value, expected = derivative(velocity)
    found, by_velocity, by_slowest = waves(velocity, float(velocity.min()), linear(weights))
    by_velocity[np.unravel_index(velocity.argmin(), velocity.shape)] += by_slowest
    assert found == pytest.approx(value, abs=1e-4 * np.linalg.norm(weights))
    np.testing.assert_allclose(by_velocity, expected, atol=3e-4 * np.abs(expected).max())
    assert np.linalg.norm(by_velocity - expected) < 3e-4 * np.linalg.norm(expected)


def test_dot_product_of_a_change_and_a_residual(waves):
    """<J dv, r> by central differences is <dv, J' r>, for the map and for the sponge."""
    velocity, weights = layered().astype(np.float64), band_limited(SMALL.gather_shape)
    _, by_velocity, by_slowest = waves(velocity, 2000.0, linear(weights))
    change = 10.0 * np.random.default_rng(2).normal(size=velocity.shape)
    ends = [waves(velocity + sign * change, 2000.0, linear(weights))[0] for sign in (1, -1)]
    assert np.vdot(by_velocity, change) == pytest.approx((ends[0] - ends[1]) / 2, rel=2e-2)
    ends = [waves(velocity, 2000.0 + sign * 500.0, linear(weights))[0] for sign in (1, -1)]
    assert by_slowest == pytest.approx((ends[0] - ends[1]) / 1000, rel=5e-2)


def test_a_gradient_leads_down_the_misfit_of_another_map():
    waves, wanted = adjoint(WAVES, 4500.0), model_gathers(earth(300.0)[None, None], WAVES)[0]

    def off(source, recorded):
        residual = recorded - wanted[source]
        return float(np.sum(residual**2)) / 2, residual

    start = earth(0.0).astype(np.float64)
    value, gradient, _ = waves(start, 2600.0, off)
    step = -50.0 * gradient / np.abs(gradient).max()
    slope = float(np.sum(gradient * step))
    after = waves(start + 0.02 * step, 2600.0, off)[0]
    assert after - value == pytest.approx(0.02 * slope, rel=0.1)
