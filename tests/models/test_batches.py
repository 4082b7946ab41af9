"""What the networks are fed: the mirror is the physics' own, devices get their own receivers, masks are sane."""

import numpy as np
import pytest

from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.companding import Companding, compand
from models.data import batches as recipes
from models.data.batches import EpicBatches, drop_devices, log_scaled, noise_levels
from models.data.gathers import DecimatedSet, device_parts, split_to_devices
from models.errors import TrainingError
from models.training.budget import Budget, learning_rate_at
from physics.acquisition import Acquisition
from testbed.run import find_model

SURVEY = Acquisition.openfwi()


def some_set(n: int = 4) -> DecimatedSet:
    rng = np.random.default_rng(0)
    gathers = rng.normal(size=(n, 20, SURVEY.n_receivers, SURVEY.n_sources)).astype(np.float16)
    maps = rng.uniform(-1, 1, (n, *SURVEY.map_shape[1:])).astype("f")
    twins = rng.normal(size=(*gathers.shape[:3], len(SURVEY.twin_cells))).astype(np.float16)
    return DecimatedSet(gathers, maps, np.array(["flatvel_a"] * n), SURVEY, twins)


def test_training_sees_exactly_what_a_device_feeds_its_encoder():
    """Thinning, companding and layout of the training pipeline and of the device are one definition."""
    rng = np.random.default_rng(0)
    gather = rng.normal(size=SURVEY.gather_shape).astype("f")
    companding = Companding(k=50.0, c=8.0, thin=10)
    thinned = gather.reshape(SURVEY.n_sources, -1, 10, SURVEY.n_receivers).mean(2).transpose(1, 2, 0)[None]
    trained_on = device_parts(thinned, SURVEY, companding)[0]
    for device, receivers in enumerate(SURVEY.device_receivers):
        recorded = gather[:, :, list(receivers)]
        np.testing.assert_allclose(trained_on[device], compand(recorded, companding, 14), atol=1e-5)


def test_unequal_devices_are_padded_with_silence():
    groups = (tuple(range(20)), tuple(range(20, 70)))
    survey = Acquisition.from_dict({**SURVEY.to_dict(), "device_receivers": groups})
    gathers = np.ones((1, 10, 70, 5), "f")
    parts = split_to_devices(gathers, survey)
    assert parts.shape == (1, 2, 10, 50, 5)
    assert parts[0, 0, :, :20].all() and not parts[0, 0, :, 20:].any() and parts[0, 1].all()


def test_mirror_is_the_gather_of_the_mirrored_map():
    """Modelled, not assumed: with its twin shot, the mirror of a benchmark gather is the mirrored map's gather."""
    from physics.families import generate_map
    from physics.modelling import model_gathers

    survey = Acquisition.from_dict({**SURVEY.to_dict(), "n_time": 300})
    assert survey.twin_cells == (35,)
    map_mps = generate_map("curvefault_a", 3, 0, survey)[None]
    shots = model_gathers(map_mps, survey.with_twins()).transpose(0, 2, 3, 1)
    theirs = model_gathers(map_mps[..., ::-1], survey).transpose(0, 2, 3, 1)
    data = DecimatedSet(shots[..., :5], map_mps[:, 0], np.array(["curvefault_a"]), survey, shots[..., 5:])
    ours, ours_map = data.mirrored(np.array([0]))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    np.testing.assert_array_equal(ours_map[0], map_mps[0, 0, :, ::-1])


def test_dropped_devices_leave_at_least_one():
    masks = drop_devices(2000, 5, np.random.default_rng(0))
    heard = masks.sum(axis=1)
    assert heard.min() >= 1
    assert 0.25 < (heard < 5).mean() < 0.42
    assert (1 - masks).mean(axis=0).min() > 0.05, "every device is missing now and then"
    assert drop_devices(10, 1, np.random.default_rng(0)).all()


def test_without_drop_out_every_device_is_heard():
    def masks(**options):
        batches = EpicBatches(some_set(100), Companding(50.0, 8.0, 10), **options)
        return batches.training(np.arange(100), np.random.default_rng(0))[0]["mask"]

    assert masks(drop_out_share=0.0).all()
    assert not masks().all()


def companding_for(peak, k=20.0):
    return Companding(k, float(np.arcsinh(k * peak)), 10)


def test_noise_is_as_loud_beside_the_waves_of_any_survey(monkeypatch):
    """Cells of a tenth have waves of a hundredth: what the encoder is fed differs by no more than its companding."""
    monkeypatch.setattr(recipes, "AUGMENTED_SHARE", 0.0)

    def levels(peak):
        data = some_set(400)
        quiet = DecimatedSet(0 * data.gathers, data.maps, data.families, SURVEY)
        companding = companding_for(peak, 20.0 * 49.48 / peak)
        parts = EpicBatches(quiet, companding).training(np.arange(400), np.random.default_rng(0))[0]["parts"]
        return parts.std(axis=(1, 2, 3, 4))

    np.testing.assert_allclose(levels(0.4948), levels(49.48), rtol=1e-5)
    assert np.count_nonzero(levels(49.48)) == pytest.approx(200, abs=40)


def test_noise_of_the_released_models_is_what_it_was():
    companding = load_bundle(find_model(None).bundle).companding
    assert noise_levels(companding) == pytest.approx((recipes.NOISE_MIN, recipes.NOISE_MAX), rel=1e-3)
    gathers = np.zeros((200, 20, 70, 5), "f")
    then = recipes.add_noise(gathers, np.random.default_rng(3))
    now = recipes.add_noise(gathers, np.random.default_rng(3), noise_levels(companding))
    np.testing.assert_allclose(now, then, rtol=1e-3)


def test_batches_are_a_function_of_the_generator():
    batches = EpicBatches(some_set(), Companding(50.0, 8.0, 10))
    one, two = (batches.training(np.arange(4), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one[0]["parts"], two[0]["parts"])
    np.testing.assert_array_equal(one[1], two[1])


def test_baseline_input_spans_minus_one_to_one():
    gathers = np.array([-27.0, 0.0, 57.0], "f").reshape(1, 1, 3, 1)
    scaled = log_scaled(gathers, (-np.log(28.0), np.log(58.0)))
    assert scaled.shape == (1, 3, 1, 1)
    assert scaled.min() == pytest.approx(-1, abs=1e-6) and scaled.max() == pytest.approx(1, abs=1e-6)


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate_at(share, 1e-3) for share in np.linspace(0, 1, 101)]
    assert rates[0] < 1e-4 and max(rates) == pytest.approx(1e-3, rel=0.02) and rates[-1] < 1e-9
    assert np.all(np.diff(rates[3:]) <= 0)


@pytest.mark.parametrize(
    "wrong", [{}, {"minutes": 1, "epochs": 1}, {"minutes": -1}, {"epochs": 1, "seed": -1}]
)
def test_budget_wants_one_positive_duration_and_a_seed(wrong):
    with pytest.raises(TrainingError, match="budget"):
        Budget(**wrong)


def test_samples_without_exact_mirror_images_are_never_mirrored():
    receivers = {"receiver_cells": list(range(1, 70)), "device_receivers": [list(range(69))]}
    off_centre = Acquisition.from_dict({**SURVEY.to_dict(), **receivers})
    data = some_set(40)
    without_twins = DecimatedSet(data.gathers, data.maps, data.families, SURVEY)
    lopsided = DecimatedSet(
        data.gathers[:, :, 1:], data.maps, data.families, off_centre, data.twins[:, :, 1:]
    )
    companding = Companding(k=50.0, c=8.0, thin=10)
    everyone = np.arange(40)

    def mirrored_of(which):
        maps = EpicBatches(which, companding).training(everyone, np.random.default_rng(0))[1][..., 0]
        return int(np.sum(np.any(maps != data.maps, axis=(1, 2))))

    assert mirrored_of(lopsided) == 0
    assert mirrored_of(without_twins) == 0
    assert 5 < mirrored_of(data) < 35
