"""Latents unlike those of training score high, whatever devices were heard."""

import numpy as np
import pytest

from models.inversion.ood import FALSE_ALARMS, OodError, load_ood, measure_ood

LATENT = 8
MIX = np.random.default_rng(0).normal(size=(LATENT, LATENT))
ALL = np.ones((1, 3), bool)


def gathers(n, seed):
    """Latents of ``n`` gathers of three devices, correlated and off centre."""
    return 2.0 + np.random.default_rng(seed).normal(size=(n, 3, LATENT)) @ MIX


@pytest.fixture(scope="module")
def statistics():
    return measure_ood(gathers(4000, 1), gathers(2000, 2))


def test_gathers_like_those_of_training_score_about_one(statistics):
    scores = statistics.scores(gathers(3000, 3), np.ones((3000, 3), bool))
    assert scores.mean() == pytest.approx(1.0, abs=0.05)
    assert (scores > statistics.limit).mean() == pytest.approx(FALSE_ALARMS, abs=0.008)


def test_others_score_above_the_limit(statistics):
    silence = np.zeros((1, 3, LATENT))
    for strange in (gathers(1, 4) * 4, silence + 30, gathers(1, 4)[..., ::-1] * 2):
        assert statistics.scores(strange, ALL)[0] > statistics.limit


def test_a_device_that_was_not_heard_does_not_matter(statistics):
    latents = gathers(1, 5)
    heard = np.array([[True, False, True]])
    score = statistics.scores(latents, heard)
    latents[0, 1] = 1e6
    assert statistics.scores(latents, heard) == score
    assert statistics.scores(latents, ALL)[0] > statistics.limit


def test_of_a_device_that_sent_its_first_values_these_alone_are_judged(statistics):
    latents, heard = gathers(2000, 8), np.ones((2000, 3), bool)
    sent = np.tile([3, LATENT, 3], (2000, 1))
    alone = measure_ood(gathers(4000, 1)[..., :3], gathers(50, 2)[..., :3])
    of_first = alone.scores(latents[..., :3], heard & (sent == 3))
    of_whole = statistics.scores(latents, heard & (sent == LATENT))
    latents[:, ::2, 3:] = 0.0
    scores = statistics.scores(latents, heard, sent)
    np.testing.assert_allclose(scores, (2 * of_first + of_whole) / 3, rtol=1e-3)
    assert statistics.scores(latents[:1] * 4, ALL, sent[:1])[0] > statistics.limit


def test_coarse_steps_are_not_taken_for_strange():
    """Of one direction that hardly varies: its rounding would be most of the score, were it not told."""
    scale = np.ones(LATENT)
    scale[-1] = 0.05
    fitted = measure_ood(gathers(4000, 1) * scale, gathers(2000, 2) * scale)
    step, everyone = 0.5, np.ones((2000, 3), bool)
    coarse = (np.floor(gathers(2000, 3) * scale / step) + 0.5) * step
    noise = np.full((2000, 3), step**2 / 12)
    told = fitted.scores(coarse, everyone, noise=noise)
    assert (fitted.scores(coarse, everyone) > fitted.limit).mean() > 0.5
    assert told.mean() == pytest.approx(1.0, abs=0.1) and (told > fitted.limit).mean() < 0.05


def test_a_direction_in_which_nothing_varied_is_no_division_by_zero():
    flat = gathers(500, 6)
    flat[..., 0] = 1.0
    assert np.isfinite(measure_ood(flat, flat[:50]).scores(flat[:5], np.ones((5, 3), bool))).all()


def test_it_is_kept(statistics, tmp_path):
    statistics.save(tmp_path / "f.npz")
    again = load_ood(tmp_path / "f.npz", LATENT)
    np.testing.assert_allclose(
        again.scores(gathers(5, 7), np.ones((5, 3), bool)),
        statistics.scores(gathers(5, 7), np.ones((5, 3), bool)),
    )
    assert again.limit == pytest.approx(statistics.limit)
    with pytest.raises(OodError, match="expected latents of 9"):
        load_ood(tmp_path / "f.npz", 9)
    (tmp_path / "f.npz").write_bytes(b"PK")
    with pytest.raises(OodError, match="copy the whole folder again"):
        load_ood(tmp_path / "f.npz", LATENT)


@pytest.mark.parametrize(("n", "validation"), [(2, 50), (500, 0)])
def test_too_little_to_measure_on(n, validation):
    with pytest.raises(OodError, match="train on more samples"):
        measure_ood(gathers(n, 1), gathers(validation, 2))
