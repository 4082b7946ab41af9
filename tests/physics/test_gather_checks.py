"""What a look at a gather tells: shown on gathers of the demo and on genuine ones."""

from pathlib import Path

import numpy as np
import pytest

from physics.acquisition import Acquisition
from physics.gather_checks import expected_peaks, notes_on

SURVEY = Acquisition.openfwi()
GENUINE = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def gathers():
    from testbed.samples import load_samples

    return [sample.gather for sample in load_samples()]


def test_a_gather_of_the_demo_is_as_expected_and_a_changed_one_is_not(gathers):
    for gather in gathers:
        assert notes_on(gather, SURVEY, expected_peaks()) == []
        assert "polarity looks reversed" in notes_on(-gather, SURVEY, expected_peaks())[0]
        (note,) = notes_on(gather / 250, SURVEY, expected_peaks())
        assert note.startswith("peak 0.") and "the model knows peaks of 19.8 to 59.4" in note
        assert notes_on(0 * gather, SURVEY, expected_peaks()) == [
            "every sample is zero; its map shows nothing"
        ]


def test_a_few_reversed_or_silent_receivers_are_no_reversed_gather(gathers):
    gather = gathers[0].copy()
    gather[:, :, ::4] *= -1
    gather[:, :, 1::5] = 0
    assert notes_on(gather, SURVEY, expected_peaks()) == []


def test_a_gather_of_few_receivers_has_a_note(gathers):
    """The map of such a gather is a guess, but does not look like one."""
    gather = np.where(np.arange(70) < 24, gathers[0], 0)
    (note,) = notes_on(gather, SURVEY, expected_peaks())
    assert note == "230 of 350 traces are silent, at most 25% were expected; its map is a guess"


def test_genuine_gathers_are_as_expected():
    paths = [GENUINE / "genuine" / "pair.npz", GENUINE / "real" / "openfwi_gather.npy"]
    if not all(path.exists() for path in paths):
        pytest.skip("no genuine gathers here")
    for path in paths:
        loaded = np.load(path)
        gather = np.asarray(loaded["gather"] if path.suffix == ".npz" else loaded, np.float32)
        assert notes_on(gather, SURVEY, expected_peaks()) == []
