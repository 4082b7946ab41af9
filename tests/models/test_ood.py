"""Latents unlike those of training score high, whatever devices were heard."""

import numpy as np
import pytest

from models.inversion.ood import FALSE_ALARMS, OodError, load_familiarity, measure_familiarity

LATENT = 8
MIX = np.random.default_rng(0).normal(size=(LATENT, LATENT))
ALL = np.ones((1, 3), bool)


def gathers(n, seed):
    """Latents of ``n`` gathers of three devices, correlated and off centre."""
    return 2.0 + np.random.default_rng(seed).normal(size=(n, 3, LATENT)) @ MIX


@pytest.fixture(scope="module")
def familiarity():
    return measure_familiarity(gathers(4000, 1), gathers(2000, 2))


def test_gathers_like_those_of_training_score_about_one(familiarity):
    scores = familiarity.scores(gathers(3000, 3), np.ones((3000, 3), bool))
    assert scores.mean() == pytest.approx(1.0, abs=0.05)
    assert (scores > familiarity.limit).mean() == pytest.approx(FALSE_ALARMS, abs=0.008)


def test_others_score_above_the_limit(familiarity):
    silence = np.zeros((1, 3, LATENT))
    for strange in (gathers(1, 4) * 4, silence + 30, gathers(1, 4)[..., ::-1] * 2):
        assert familiarity.scores(strange, ALL)[0] > familiarity.limit


def test_a_device_that_was_not_heard_does_not_matter(familiarity):
    latents = gathers(1, 5)
    heard = np.array([[True, False, True]])
    score = familiarity.scores(latents, heard)
    latents[0, 1] = 1e6
    assert familiarity.scores(latents, heard) == score
    assert familiarity.scores(latents, ALL)[0] > familiarity.limit


def test_of_a_device_that_sent_its_first_values_these_alone_are_judged(familiarity):
    latents, heard = gathers(2000, 8), np.ones((2000, 3), bool)
    sent = np.tile([3, LATENT, 3], (2000, 1))
    alone = measure_familiarity(gathers(4000, 1)[..., :3], gathers(50, 2)[..., :3])
    of_first = alone.scores(latents[..., :3], heard & (sent == 3))
    of_whole = familiarity.scores(latents, heard & (sent == LATENT))
    latents[:, ::2, 3:] = 0.0
    scores = familiarity.scores(latents, heard, sent)
    np.testing.assert_allclose(scores, (2 * of_first + of_whole) / 3, rtol=1e-3)
    assert familiarity.scores(latents[:1] * 4, ALL, sent[:1])[0] > familiarity.limit


def test_coarse_steps_are_not_taken_for_strange():
    """Of one direction that hardly varies: its rounding would be most of the score, were it not told."""
    scale = np.ones(LATENT)
    scale[-1] = 0.05
    fitted = measure_familiarity(gathers(4000, 1) * scale, gathers(2000, 2) * scale)
    step, everyone = 0.5, np.ones((2000, 3), bool)
    coarse = (np.floor(gathers(2000, 3) * scale / step) + 0.5) * step
    noise = np.full((2000, 3), step**2 / 12)
    told = fitted.scores(coarse, everyone, noise=noise)
    assert (fitted.scores(coarse, everyone) > fitted.limit).mean() > 0.5
    assert told.mean() == pytest.approx(1.0, abs=0.1) and (told > fitted.limit).mean() < 0.05


def test_a_direction_in_which_nothing_varied_is_no_division_by_zero():
    flat = gathers(500, 6)
    flat[..., 0] = 1.0
    assert np.isfinite(measure_familiarity(flat, flat[:50]).scores(flat[:5], np.ones((5, 3), bool))).all()


def test_it_is_kept(familiarity, tmp_path):
    familiarity.save(tmp_path / "f.npz")
    again = load_familiarity(tmp_path / "f.npz", LATENT)
    np.testing.assert_allclose(
        again.scores(gathers(5, 7), np.ones((5, 3), bool)),
        familiarity.scores(gathers(5, 7), np.ones((5, 3), bool)),
    )
    assert again.limit == pytest.approx(familiarity.limit)
    with pytest.raises(OodError, match="expected latents of 9"):
        load_familiarity(tmp_path / "f.npz", 9)
    (tmp_path / "f.npz").write_bytes(b"PK")
    with pytest.raises(OodError, match="copy the whole folder again"):
        load_familiarity(tmp_path / "f.npz", LATENT)


@pytest.mark.parametrize(("n", "watched"), [(2, 50), (500, 0)])
def test_too_little_to_measure_on(n, watched):
    with pytest.raises(OodError, match="train on more samples"):
        measure_familiarity(gathers(n, 1), gathers(watched, 2))
