"""Any number of workers draws the one sequence of maps."""

import numpy as np
import pytest

from physics import sequence
from physics.acquisition import Acquisition
from physics.families import generate_map
from physics.sequence import Sequence, draw_maps

SURVEY = Acquisition.openfwi()


@pytest.mark.parametrize("workers", [1, 2])
def test_maps_come_in_order_and_are_those_of_their_family_and_index(workers, monkeypatch):
    monkeypatch.setattr(sequence, "INDICES_A_TASK", 3)
    families = ("flatvel_a", "style_b")
    drawn = list(draw_maps(Sequence(families, 7, SURVEY), 7, workers))
    indices = np.concatenate([some for some, _ in drawn])
    maps = np.concatenate([some for _, some in drawn])
    assert indices.tolist() == [i for i in range(7) for _ in families]
    for row, (index, drawn_map) in enumerate(zip(indices, maps, strict=True)):
        expected = generate_map(families[row % 2], 7, int(index), SURVEY)[0]
        np.testing.assert_array_equal(drawn_map, expected)
