"""An adapted decoder moves back towards its parent until its error on the original families is within the limit."""

import numpy as np
import pytest

from models.training import adaptation


class Weights:
    """A network of one weight."""

    def __init__(self, value):
        self.value = value

    def get_weights(self):
        return [np.array(self.value)]

    def set_weights(self, weights):
        (self.value,) = (float(one) for one in weights)


@pytest.mark.parametrize(("most_mae", "share"), [(0.2, 1.0), (0.17, 0.8), (0.15, 0.6), (0.01, 0.4)])
def test_the_largest_change_within_the_limit_is_left_or_else_the_smallest(monkeypatch, most_mae, share):
    learner = Weights(3.0)

    class Batches:
        class data:
            class acquisition:
                device_positions = staticmethod(lambda: None)

    monkeypatch.setattr(adaptation, "_as_received", lambda network, positions: network)
    monkeypatch.setattr(adaptation, "predict", lambda *rest: np.zeros((1, 1, 1, 1)))
    monkeypatch.setattr(adaptation, "score", lambda *rest: {"all": {"mae": 0.1 * (learner.value - 1.0)}})
    found, mae = adaptation.blend(learner, [np.array(1.0)], Batches, np.arange(1), most_mae)
    assert found == share
    assert learner.value == pytest.approx(1.0 + share * 2.0)
    assert mae == pytest.approx(0.2 * share)
