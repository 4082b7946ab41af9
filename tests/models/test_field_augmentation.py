"""The field's faults on training gathers, at their stated strengths."""

import numpy as np
import pytest

from models.data import field_augmentation
from physics.acquisition import Acquisition

SURVEY = Acquisition.openfwi()
SAMPLE_S = 0.01


@pytest.fixture
def only(monkeypatch):
    """Leaves one kind of fault on: ``only(JITTER_S=0.002)``."""

    def switch(**kept):
        for name in ("DEAD_SHARE", "REVERSED_SHARE", "GAIN_SPREAD", "JITTER_S", "SPARSE_SHARE"):
            monkeypatch.setattr(field_augmentation, name, kept.get(name, 0.0))

    return switch


def gathers(n=40):
    """A smooth pulse at every receiver, well inside the record."""
    time = np.arange(100)[None, :, None, None]
    pulse = np.exp(-(((time - 50) / 6.0) ** 2))
    return np.broadcast_to(pulse, (n, 100, 70, 5)).astype(np.float32)


def augmented(n=40, seed=0):
    return field_augmentation.augment_field(gathers(n), SURVEY, SAMPLE_S, np.random.default_rng(seed))


def test_without_faults_nothing_changes(only):
    only()
    np.testing.assert_allclose(augmented(2), gathers(2), atol=1e-6)


def test_dead_receivers_are_silent_for_all_sources_and_as_many_as_stated(only):
    only(DEAD_SHARE=0.1)
    silent = ~np.any(augmented(), axis=1)
    assert (silent == silent[..., :1]).all()
    assert silent.mean() == pytest.approx(0.1, abs=0.02)


def test_a_sparse_spread_is_a_stretch_of_the_line_or_each_second_to_fourth_receiver(only):
    only(SPARSE_SHARE=0.5)
    live = np.any(augmented(400), axis=1)
    assert (live == live[..., :1]).all()
    sparse = [np.flatnonzero(row) for row in live[..., 0] if not row.all()]
    assert len(sparse) == pytest.approx(200, abs=40)
    steps = [set(np.diff(row)) for row in sparse]
    assert {frozenset(step) for step in steps} == {frozenset({step}) for step in (1, 2, 3, 4)}
    stretches = [len(row) for row, step in zip(sparse, steps, strict=True) if step == {1}]
    assert 0.19 * 70 <= min(stretches) < 20 and 45 < max(stretches) <= 0.76 * 70


def test_reversed_receivers_have_the_other_sign(only):
    only(REVERSED_SHARE=0.1)
    peak = augmented()[:, 50]
    assert np.abs(np.abs(peak) - 1).max() < 1e-5
    assert (peak < 0).mean() == pytest.approx(0.1, abs=0.02)


def test_gains_spread_as_stated(only):
    only(GAIN_SPREAD=0.1)
    assert np.log(augmented()[:, 50, :, 0]).std() == pytest.approx(0.1, rel=0.1)


def test_a_devices_receivers_are_late_together_and_by_as_much_as_stated(only):
    only(JITTER_S=0.002)
    moved = augmented()[..., 0]
    time_s = np.arange(100) * SAMPLE_S
    centre_s = np.einsum("ntr,t->nr", moved, time_s) / moved.sum(axis=1)
    late_s = centre_s - 0.5
    for receivers in SURVEY.device_receivers:
        assert np.ptp(late_s[:, list(receivers)], axis=1).max() < 1e-5
    assert late_s[:, ::14].std() == pytest.approx(0.002, rel=0.2)
