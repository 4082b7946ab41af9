"""A training that is stopped is saved, whoever stops it."""

import json
import os
import signal

import keras
import numpy as np
import pytest

from models.data.batches import TrainingData
from models.training.budget import Budget
from models.training.training import Steps, load_checkpoint, train


class Batches:
    def __init__(self):
        self.data = type("Data", (), {"maps": np.zeros((4, 1), np.float32)})

    def training(self, indices, rng):
        return np.ones((len(indices), 3), np.float32), np.zeros((len(indices), 1), np.float32)

    def plain(self, indices):
        return self.training(indices, None)


def network():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    return model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_is_saved_and_goes_on(tmp_path, number):
    steps = []

    def learn(inputs, maps):
        steps.append(0)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return 0.5

    budget = Budget(batch=2, epochs=10, learning_rate=1e-3)
    data = TrainingData(Batches(), np.arange(4), np.array([], int))
    former = signal.getsignal(number)
    model = network()
    with pytest.raises(KeyboardInterrupt):
        train(model, data, budget, tmp_path, Steps(learn))
    assert signal.getsignal(number) is former
    assert json.loads((tmp_path / "checkpoint" / "progress.json").read_text())["step"] == 3
    for mine, saved in zip(model.get_weights(), load_checkpoint(tmp_path).get_weights(), strict=True):
        np.testing.assert_array_equal(mine, saved)
    # It goes on where it stopped: 20 steps are 10 epochs of 4 samples.
    progress, _ = train(network(), data, budget, tmp_path, Steps(lambda *_: 0.5))
    assert progress.step == 20
