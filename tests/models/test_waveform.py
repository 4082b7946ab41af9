"""Waveform inversion of a recording: towards the truth, down to the noise, and past what a survey does to its data."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from small_waves import WAVES, earth, uncertainty

from models.inversion import waveform
from models.inversion.recording import Lowpass, Recording, RecordingMisfit
from models.inversion.waveform import invert
from physics.errors import ModellingError
from physics.modelling import model_gathers

TRUTH, START = earth(300.0), earth(0.0)


@pytest.fixture(scope="module")
def gather():
    return model_gathers(TRUTH[None, None], WAVES)[0]


def found(recorded, iterations=4, **options):
    return invert(START, uncertainty(), recorded, WAVES, iterations, **options)


def likeness(velocity_mps):
    """Correlation of what was changed with what should have been, averaged over a wavelength."""
    changes = (gaussian_filter(v - START, 2.0).ravel() for v in (velocity_mps, TRUTH))
    return np.corrcoef(*changes)[0, 1]


def test_a_recording_moves_the_map_towards_the_truth(gather):
    told = []
    result = found(gather, 30, on_iteration=lambda done, misfit, map_mps: told.append(done))
    assert result.gained and result.misfit[1] < 0.5 * result.misfit[0]
    assert likeness(result.velocity_mps) > 0.5
    assert told == list(range(1, result.iterations + 1)) and result.iterations <= 30
    assert WAVES.velocity_min_mps <= result.velocity_mps.min()
    assert (result.uncertainty_mps <= uncertainty() * 1.001).all()


def test_the_better_a_recording_is_explained_the_surer_is_the_map(gather):
    unsure = 40 * uncertainty()
    short, long = (invert(START, unsure, gather, WAVES, iterations) for iterations in (4, 30))
    assert long.misfit[1] < 0.7 * short.misfit[1]
    assert long.uncertainty_mps.mean() < 0.8 * short.uncertainty_mps.mean() < unsure.mean()


def test_a_misfit_that_is_noise_leaves_the_map_sure(gather):
    noise = 0.02 * gather.std() * np.random.default_rng(0).normal(size=gather.shape)
    recording = Recording.of(gather + noise, WAVES)
    misfit = RecordingMisfit(WAVES, recording, Lowpass(WAVES, None))
    truth = waveform._Found(TRUTH, gather, misfit.value(gather))
    left = [
        waveform._posterior(truth, recording, one, 40 * uncertainty(), WAVES).mean()
        for one in (
            misfit,
            RecordingMisfit(WAVES, replace(recording, measured_noise=0.0), Lowpass(WAVES, None)),
        )
    ]
    assert left[0] < 0.5 * left[1]


def test_the_smooth_prior_lowers_the_misfit_too_and_there_is_no_third(gather):
    assert found(gather, prior="smooth").gained
    with pytest.raises(ValueError, match="expected blocky or smooth, got 'rough'"):
        found(gather, prior="rough")


def test_an_interrupted_inversion_goes_on_from_its_map(gather):
    reached = []
    found(gather, 12, on_iteration=lambda done, misfit, map_mps: reached.append((map_mps, done)))
    told = []
    result = found(
        gather, 30, resume_from=reached[11], on_iteration=lambda done, misfit, _: told.append((done, misfit))
    )
    assert told[0][0] == 13 and told[-1][0] == result.iterations <= 30
    # The misfit is still relative to the predicted map's.
    assert result.misfit[0] == found(gather, 1).misfit[0] and result.misfit[1] < 0.5 * result.misfit[0]


@pytest.mark.parametrize("shares", [(1e4, 1.0), (1.0, 1e4)])
def test_shares_of_the_roughness_compete_by_the_misfit_they_leave(gather, shares, monkeypatch):
    """One of them makes the map flat; callers do not hear of its map."""
    monkeypatch.setattr(waveform, "SHARES", shares)
    told = []
    result = found(gather, 75, on_iteration=lambda *now: told.append(now))
    assert result.settings["roughness_share"] == 1.0
    assert [done for done, _, _ in told] == list(range(1, result.iterations + 1))
    assert all(np.array_equal(map_mps, START) for _, _, map_mps in told[:5])
    assert not np.array_equal(told[-1][2], START)
    assert result.gained and likeness(result.velocity_mps) > 0.5


def test_regions_are_fitted_between_stages_of_cells(gather, monkeypatch):
    monkeypatch.setattr(waveform, "LEAST_LAYERED_ITERATIONS", 20)
    told = []
    result = found(gather, 240, on_iteration=lambda *now: told.append(now))
    assert 2 <= result.settings["regions"] <= 20
    assert result.gained and likeness(result.velocity_mps) > 0.6
    done = [count for count, _, _ in told]
    assert done == sorted(set(done)) and done[-1] == result.iterations <= 240
    assert max(np.diff(done)) > 1, "a step of regions counts as the gathers that it models"
    assert found(gather, 120, prior="smooth").settings["regions"] is None


def test_regions_are_left_alone_where_a_few_steps_would_take_all_iterations(gather, monkeypatch):
    monkeypatch.setattr(waveform, "LEAST_LAYERED_ITERATIONS", 5)
    result = found(gather, 60)
    assert result.gained and result.settings["regions"] is None


def test_regions_that_do_not_explain_the_recording_are_given_up(gather, monkeypatch):
    class Wrong(waveform.LayeredFit):
        def __init__(self, velocity, *others):
            super().__init__(velocity, *others)
            Wrong.before = velocity

        def step(self):
            wrong = np.where(np.indices(TRUTH.shape).sum(axis=0) % 2, 1600.0, 4400.0)
            self.now = replace(self.now, velocity=wrong, misfit=1e3)
            return False

    monkeypatch.setattr(waveform, "LayeredFit", Wrong)
    monkeypatch.setattr(waveform, "LEAST_LAYERED_ITERATIONS", 20)
    monkeypatch.setattr(waveform, "GIVEN_UP", 1.0)
    told = []
    result = found(gather, 240, on_iteration=lambda *now: told.append(now))
    assert result.settings["regions"] and result.gained and likeness(result.velocity_mps) > 0.6
    # The last stage goes on from the map before.
    assert np.abs(told[-1][2] - Wrong.before).mean() < 20.0


@pytest.mark.parametrize(
    ("before", "after", "given_up"),
    [(1.1, 1.15, False), (1.1, 1.4, True), (0.99, 1.02, False), (0.99, 1.1, True)],
)
def test_what_noise_leaves_does_not_keep_regions(gather, before, after, given_up):
    """Misfits are in units of what the noise leaves."""
    noise = 0.02 * gather.std() * np.random.default_rng(0).normal(size=gather.shape)
    run = waveform._Run(WAVES, Recording.of(gather + noise, WAVES), "blocky", lambda *now: None)
    found = [waveform._Found(TRUTH, gather, times * run.broadband.noise) for times in (after, before)]
    assert run._is_given_up(*found) == given_up


def test_few_iterations_are_not_spent_on_a_competition(gather):
    assert found(gather, 12).settings["roughness_share"] is None


def test_dead_receivers_and_a_missing_device_are_left_out(gather):
    spoilt = gather.copy()
    spoilt[:, :, 1] = 0.0
    spoilt[:, :, 3:] = np.nan
    result = found(spoilt)
    assert result.gained and result.settings["dead_traces"] == 2 * 4
    assert np.isfinite(result.velocity_mps).all()
    with pytest.raises(ModellingError, match="at least one live trace, got none"):
        found(np.zeros_like(gather))


def test_a_wavelet_of_another_amplitude_is_found_out(gather):
    result = found(3.0 * gather)
    assert result.settings["amplitude"] == pytest.approx(3.0, rel=0.05)
    assert result.misfit[0] < 0.5


def test_a_misfit_no_larger_than_the_noise_is_not_fitted(gather):
    rng = np.random.default_rng(0)
    noise = 0.02 * np.sqrt(np.mean(gather**2))
    recorded = gather + noise * rng.normal(size=gather.shape)
    assert Recording.of(recorded, WAVES).noise == pytest.approx(noise, rel=0.25)
    exactly = Recording(recorded, np.ones(gather.shape), noise)
    assert exactly.chi_squared(gather) == pytest.approx(1.0, rel=0.1)
    # Noise that is known a little too large: nothing is left to fit.
    louder = Recording(recorded, np.ones(gather.shape), 1.1 * noise)
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setattr(Recording, "of", classmethod(lambda cls, *_: louder))
    result = invert(TRUTH, uncertainty(), recorded, WAVES, 50)
    monkeypatched.undo()
    assert result.iterations == 0 and not result.gained


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
    assert late / early > 1.8 * raw
