"""The survey as a value."""

import numpy as np
import pytest

from physics.acquisition import Acquisition, AcquisitionError


def changed(**values) -> Acquisition:
    return Acquisition.from_dict({**Acquisition.openfwi().to_dict(), **values})


def test_the_benchmarks_survey():
    survey = Acquisition.openfwi()
    assert survey.gather_shape == (5, 1000, 70)
    assert survey.map_shape == (1, 70, 70)
    assert survey.source_cells == (0, 17, 34, 52, 69)
    assert [len(group) for group in survey.device_receivers] == [14] * 5


@pytest.mark.parametrize("n_devices", [1, 3, 5, 7, 70])
def test_every_receiver_has_one_device(n_devices):
    survey = Acquisition.openfwi(n_devices)
    assert sorted(i for group in survey.device_receivers for i in group) == list(range(70))
    sizes = {len(group) for group in survey.device_receivers}
    assert max(sizes) - min(sizes) <= 1
    assert survey.max_device_receivers == max(sizes)


def test_round_trip_and_digest():
    survey = Acquisition.openfwi(3)
    assert Acquisition.from_dict(survey.to_dict()) == survey
    assert survey.digest() == Acquisition.openfwi(3).digest() != Acquisition.openfwi(4).digest()


def test_positions_are_centres_and_half_extents_along_the_line():
    positions = Acquisition.openfwi().device_positions()
    assert positions.shape == (5, 2)
    np.testing.assert_allclose(positions[2, 0], 0.5, atol=1e-6)
    np.testing.assert_allclose(positions[:, 0] + positions[::-1, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(positions[:, 1] * 69 * 2, 13, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source_cells": [0, 70]}, "source_cells: expected cells within 0..69"),
        ({"receiver_row": 70}, "receiver_row: expected a row within 0..69, got 70"),
        ({"device_receivers": [[0, 1], [1, 2]]}, "every receiver 0..69 exactly once, got 4 entries"),
        ({"device_receivers": [list(range(70)), []]}, "a device without receivers"),
        ({"n_depths": 3}, r"unknown entries \['n_depths'\]"),
    ],
)
def test_contradictions_are_named(values, message):
    with pytest.raises(AcquisitionError, match=message):
        changed(**values)
