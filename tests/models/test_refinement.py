"""Refinement goes down the gradient of the waves, and towards the truth where the truth can be seen."""

import keras
import numpy as np
import pytest
from small_waves import WAVES, earth, uncertainty

from firmware_py.inference.companding import Companding
from models.inversion.latent_model import LatentModel
from models.inversion.refinement import (
    CONTRAST,
    LatentMisfit,
    _Objective,
    refine,
    smoothing,
    value_and_derivative,
)
from models.inversion.roughness import Roughness
from models.networks.encoder import EncoderConfig, Stage, build_encoder
from physics.modelling import model_gathers

pytestmark = pytest.mark.slow

COMPANDING = Companding(20.0, 5.0, 10)


def gather_of(velocity_mps):
    return model_gathers(velocity_mps[None, None], WAVES)[0]


@pytest.fixture(scope="module")
def latent_model():
    keras.utils.set_random_seed(0)
    encoder = build_encoder(EncoderConfig(10, 3, 2, 32, (Stage(8, (3, 3), (2, 1)),), bottleneck=4))
    return LatentModel(encoder, COMPANDING, WAVES, np.full(32, 0.001))


def test_derivatives_of_misfit_and_roughness_are_those_of_finite_differences(latent_model):
    rng = np.random.default_rng(1)
    gather = gather_of(earth(0.0))
    received = np.asarray(latent_model.encode(gather_of(earth(400.0))))
    misfit = LatentMisfit(latent_model, received, np.ones(received.shape))
    _, derivative = misfit(gather)
    direction = derivative / np.linalg.norm(derivative)
    step = 1e-2
    slope = (misfit(gather + step * direction)[0] - misfit(gather - step * direction)[0]) / (2 * step)
    assert np.vdot(derivative, direction) == pytest.approx(slope, rel=0.02)
    values, direction = rng.normal(size=(2, 6, 7))
    roughness = Roughness(values.shape, CONTRAST)
    derivative = roughness.derivative(values)
    ends = [roughness.value(values + sign * 1e-6 * direction) for sign in (1, -1)]
    assert np.vdot(derivative, direction) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
    value, derivative = value_and_derivative(lambda x: (x * x * x)[0])(np.array([2.0]))
    assert (value, derivative.tolist()) == (8.0, [12.0])


def test_the_gradient_of_a_map_that_is_clipped_is_that_of_finite_differences(latent_model):
    received = np.asarray(latent_model.encode(gather_of(earth(300.0))))
    misfit = LatentMisfit(latent_model, received, np.ones(received.shape))
    start_mps = np.full_like(earth(0.0), WAVES.velocity_min_mps)
    start_mps[WAVES.n_depth // 2 :] = 2500.0
    objective = _Objective(start_mps, uncertainty(), misfit, WAVES)
    x = np.zeros(start_mps.shape)
    x[: WAVES.n_depth // 3] = -3.0
    assert (objective.to_map(x.ravel()) == -1.0).sum() > WAVES.n_width
    _, gradient = objective(x.ravel())
    # All of it lies among clipped cells.
    direction = np.zeros(start_mps.shape)
    direction[1, WAVES.n_width // 2] = 1.0
    ends = [objective((x + sign * 0.05 * direction).ravel())[0] for sign in (1, -1)]
    assert gradient @ direction.ravel() == pytest.approx((ends[0] - ends[1]) / 0.1, rel=0.02)


def test_smoothing_keeps_variance_also_at_the_edges():
    np.testing.assert_allclose(np.square(smoothing(9, 1.5)).sum(axis=1), 1.0)


def test_latents_move_it_too_and_those_of_who_was_not_heard_do_not(latent_model):
    received = np.asarray(latent_model.encode(gather_of(earth(300.0))))
    spoilt = received.copy()
    spoilt[1] = 1e3
    steps = np.ones(received.shape)
    steps[1] = np.inf
    found = refine(earth(0.0), uncertainty(), LatentMisfit(latent_model, spoilt, steps), WAVES, 10)
    assert found.misfit[1] < 0.7 * found.misfit[0]
    everyone = LatentMisfit(latent_model, received, np.ones(received.shape))
    of_one = LatentMisfit(latent_model, spoilt, steps)
    truth = gather_of(earth(300.0))
    assert everyone(truth)[0] < 0.1 and of_one(truth)[0] < 0.1
