"""Waveform inversion of a recording: towards the truth, down to the noise, and past what a survey does to its data."""

import numpy as np
import pytest
from small_waves import WAVES, earth, uncertainty

from models.inversion.waveform import Lowpass, Recording, invert
from physics.modelling import ModellingError, model_gathers

pytest.importorskip("deepwave", reason="the extra physics is not installed")

TRUTH, START = earth(300.0), earth(0.0)


@pytest.fixture(scope="module")
def gather():
    return model_gathers(TRUTH[None, None], WAVES)[0]


def error(velocity_mps):
    return np.abs(velocity_mps - TRUTH).mean() / np.abs(START - TRUTH).mean()


def found(recorded, iterations=40, **options):
    return invert(START, uncertainty(), recorded, WAVES, iterations, **options)


def test_a_recording_moves_the_map_towards_the_truth(gather):
    told = []
    result = found(gather, on_iteration=lambda done, misfit: told.append(done))
    assert error(result.velocity_mps) < 0.6
    assert result.gained and result.misfit[1] < 0.1 * result.misfit[0]
    assert told == list(range(1, result.iterations + 1)) and result.iterations <= 40
    assert WAVES.velocity_min_mps <= result.velocity_mps.min()
    # Nothing is known less well than before, and something better.
    assert (result.uncertainty_mps <= uncertainty() * 1.001).all()
    assert result.uncertainty_mps.min() < 0.8 * uncertainty().min()


def test_the_smooth_prior_gets_there_too_and_there_is_no_third(gather):
    assert error(found(gather, prior="smooth").velocity_mps) < 0.8
    with pytest.raises(ValueError, match="expected blocky or smooth, got 'rough'"):
        found(gather, prior="rough")


def test_the_exact_adjoint_alone_does_without_deepwave(gather, monkeypatch):
    monkeypatch.setattr("models.inversion.waveform.find_spec", lambda name: None)
    result = found(gather, 20)
    assert result.settings["engine"] == "openfwi"
    assert error(result.velocity_mps) < 0.7


def test_dead_receivers_and_a_missing_device_are_left_out(gather):
    spoilt = gather.copy()
    spoilt[:, :, 1] = 0.0
    spoilt[:, :, 3:] = np.nan
    result = found(spoilt)
    assert result.settings["dead_traces"] == 2 * 4
    assert error(result.velocity_mps) < 0.9
    with pytest.raises(ModellingError, match="at least one live trace, got none"):
        found(np.zeros_like(gather))


def test_a_wavelet_of_another_amplitude_is_found_out(gather):
    result = found(3.0 * gather)
    assert result.settings["amplitude"] == pytest.approx(3.0, rel=0.05)
    assert error(result.velocity_mps) < 0.7


def test_it_stops_at_the_noise(gather):
    rng = np.random.default_rng(0)
    noise = 0.02 * np.sqrt(np.mean(gather**2))
    recorded = gather + noise * rng.normal(size=gather.shape)
    assert Recording.of(recorded, WAVES).noise == pytest.approx(noise, rel=0.25)
    result = found(recorded, 200)
    assert result.iterations < 200
    assert result.settings["chi_squared"] > 0.6
    assert error(result.velocity_mps) < 0.9


def test_the_truth_itself_gains_nothing(gather):
    result = invert(TRUTH, uncertainty(), gather, WAVES, 3)
    assert not result.gained and result.iterations == 0
    np.testing.assert_array_equal(result.velocity_mps, TRUTH)
    np.testing.assert_array_equal(result.uncertainty_mps, uncertainty())


def test_the_low_pass_is_its_own_adjoint_and_lets_low_frequencies_through():
    lowpass = Lowpass(WAVES, 10.0)
    one, other = np.random.default_rng(0).normal(size=(2, *WAVES.gather_shape))
    assert np.vdot(lowpass(one), other) == pytest.approx(np.vdot(one, lowpass(other)))
    constant = np.ones(WAVES.gather_shape)
    assert lowpass(constant)[:, 50] == pytest.approx(1.0, abs=1e-3)
    assert np.abs(lowpass(one)).mean() < 0.5 * np.abs(one).mean()


def test_late_arrivals_weigh_as_much_as_the_direct_wave(gather):
    recording = Recording.of(gather, WAVES)
    weighted = recording.weights(Lowpass(WAVES, None)) * gather
    early, late = (np.sqrt(np.mean(np.square(part))) for part in (weighted[:, 20:50], weighted[:, 60:90]))
    raw = np.sqrt(np.mean(gather[:, 60:90] ** 2) / np.mean(gather[:, 20:50] ** 2))
    assert late / early > 3 * raw
