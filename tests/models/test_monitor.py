"""What a training tells on its way: its history, its best weights, the end of its progress, its curves."""

import json
import os
import signal
import time

import keras
import numpy as np
import pytest

from models.data.batches import TrainingData
from models.training.budget import Budget
from models.training.curves import draw_curves
from models.training.tensorboard import EventWriter
from models.training.training import Steps, load_checkpoint, train


class Batches:
    """Maps of zeros that a network with one weight predicts as that weight."""

    def __init__(self):
        self.data = type("Data", (), {"maps": np.zeros((5, 1, 1), np.float32)})

    def training(self, indices, rng):
        return self.plain(indices)

    def plain(self, indices):
        return np.ones((len(indices), 1, 1, 1), np.float32), self.data.maps[indices][..., None]


# One sample in four validates; the weight alone decides its error.
DATA = TrainingData(Batches(), np.arange(1, 5), np.array([0]))


class Learner:
    """Sets the weight to the next of ``weights`` at each step, as though it had learnt that."""

    def __init__(self, weights, stop_at=None):
        keras.utils.set_random_seed(0)
        self.network = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Conv2D(1, 1, use_bias=False)])
        self.network.compile("adam", loss="mae")
        self.weights, self.stop_at, self.steps = weights, stop_at, 0

    def __call__(self, inputs, maps):
        self.network.set_weights([np.full((1, 1, 1, 1), self.weights[self.steps], np.float32)])
        self.steps += 1
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.5

    def weight(self):
        return float(self.network.get_weights()[0].item())


def run(learner, folder, **budget):
    """Train with one step an epoch; every step is 2 % of the budget or more."""
    budget = Budget(**{"batch": 4, "epochs": len(learner.weights), "learning_rate": 1e-3} | budget)
    return train(learner.network, DATA, budget, folder, Steps(learner))


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def instant_validation(monkeypatch):
    """Validation takes no time, so that the rows follow the steps alone."""
    monkeypatch.setattr("models.training.monitor.TRAINING_PER_VALIDATION", 0.0)


def test_a_short_run_has_a_row_for_each_step_with_both_losses(tmp_path):
    run(Learner([3.0, 2.0, 1.0]), tmp_path)
    rows = history(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["validation_loss"] for row in rows] == [3.0, 2.0, 1.0]
    assert [row["loss"] for row in rows] == [0.5] * 3


def test_a_long_run_has_about_fifty_rows(tmp_path):
    run(Learner([1.0] * 200), tmp_path)
    assert 40 <= len(history(tmp_path)) <= 50


def test_validation_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.monitor.TRAINING_PER_VALIDATION", 9.0)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def predicted(network, batches, indices, reduced=False):
        clock[0] += 10.0
        return np.zeros((len(indices), 1, 1, 1), np.float32)

    monkeypatch.setattr("models.training.monitor.predict", predicted)
    learner = Learner([1.0] * 40)

    def learn(inputs, maps):
        clock[0] += 2.0
        return learner(inputs, maps)

    budget = Budget(batch=4, epochs=40, learning_rate=1e-3)
    train(learner.network, DATA, budget, tmp_path, Steps(learn))
    # The first row at once, then 90 s of training for 10 s of validation; the rest of 80 s is too short for another.
    assert [row["step"] for row in history(tmp_path)] == [1, 40]


def test_the_best_weights_are_kept_and_the_run_ends_with_them(tmp_path):
    learner = Learner([3.0, 1.0, 2.0])
    progress, best = run(learner, tmp_path)
    assert (best.step, best.validation_loss, progress.step) == (2, 1.0, 3)
    assert learner.weight() == 1.0
    assert load_checkpoint(tmp_path).get_weights()[0].item() == 2.0, "training goes on from the last weights"
    assert load_checkpoint(tmp_path, best=True).get_weights()[0].item() == 1.0
    assert json.loads((tmp_path / "checkpoint" / "best.json").read_text())["step"] == 2


def test_a_resumed_run_remembers_its_best_weights(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Learner([1.0, 2.0, 2.0, 2.0], stop_at=2), tmp_path)
    learner = Learner([5.0, 4.0])
    run(learner, tmp_path, epochs=4)
    assert learner.weight() == 1.0
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3, 4]


def grown(learner, folder, **budget):
    """Go on with other data: maps of 10 in place of 0, so that a weight of 1 has a loss of 9."""
    batches = Batches()
    batches.data.maps = np.full((5, 1, 1), 10.0, np.float32)
    data = TrainingData(batches, np.arange(1, 5), np.array([0]))
    return train(learner.network, data, Budget(batch=4, learning_rate=1e-3, **budget), folder, Steps(learner))


def test_a_run_with_more_data_measures_its_best_weights_again(tmp_path):
    run(Learner([1.0, 2.0]), tmp_path)
    learner = Learner([5.0, 4.0])
    _, best = grown(learner, tmp_path, epochs=4)
    assert (best.step, best.validation_loss) == (3, 5.0)
    assert learner.weight() == 5.0, "weights of before the growth are worse on the new validation set"


def test_more_data_restart_the_patience_and_the_old_best_weights_may_stay_best(tmp_path):
    run(Learner([1.0, 0.5, 0.5, 0.5]), tmp_path, patience=2)
    stopped_at = len(history(tmp_path))
    learner = Learner([0.0, 0.0, 0.0, 0.0])
    progress, best = grown(learner, tmp_path, epochs=8, patience=2)
    assert (progress.step, best.step, best.validation_loss) == (stopped_at + 2, 2, 9.5)
    again = Learner([0.0] * 4)
    progress, _ = grown(again, tmp_path, epochs=8, patience=2)
    assert again.steps == 0, "the same data again restart nothing"


def test_a_checkpoint_of_before_without_best_weights_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Learner([1.0, 2.0, 2.0, 2.0], stop_at=2), tmp_path)
    for name in ("best.json", "best.weights.h5"):
        (tmp_path / "checkpoint" / name).unlink()
    old = [{key: row[key] for key in row if key != "validation_loss"} for row in history(tmp_path)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    learner = Learner([5.0, 4.0])
    _, best = run(learner, tmp_path, epochs=4)
    assert best.step == 4 and learner.weight() == 4.0
    assert draw_curves(tmp_path).exists()


def test_a_run_without_progress_stops_early_and_stays_stopped(tmp_path):
    learner = Learner([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    progress, best = run(learner, tmp_path, patience=2)
    assert (progress.step, best.step) == (4, 2)
    assert learner.weight() == 1.0
    again = Learner([9.0] * 6)
    progress, _ = run(again, tmp_path, patience=2)
    assert progress.step == 4 and again.steps == 0


def test_rows_after_the_checkpoint_of_a_killed_run_are_dropped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Learner([1.0] * 4, stop_at=2), tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "elapsed_s": 1.0, "loss": 9.0, "learning_rate": 0.1}) + "\n")
        file.write('{"step": 4, "elap')
    run(Learner([1.0] * 2), tmp_path, epochs=4)
    assert [(row["step"], row["loss"]) for row in history(tmp_path)] == [(n, 0.5) for n in (1, 2, 3, 4)]


def test_curves_of_one_row_show_a_point(tmp_path):
    row = {"step": 1, "elapsed_s": 6.0, "loss": 0.5, "validation_loss": 0.4, "validation_mae": 0.3}
    (tmp_path / "history.jsonl").write_text(json.dumps(row | {"learning_rate": 0.1}) + "\n")
    import matplotlib.image
    import matplotlib.pyplot as plt

    def coloured():
        """Pixels in the first curve's colour."""
        pixels = matplotlib.image.imread(draw_curves(tmp_path))[..., :3]
        first = matplotlib.colors.to_rgb(plt.rcParams["axes.prop_cycle"].by_key()["color"][0])
        return int((np.abs(pixels - first).max(axis=-1) < 0.02).sum())

    with_point = coloured()
    (tmp_path / "history.jsonl").write_text(json.dumps(row | {"learning_rate": 0.1, "loss": None}) + "\n")
    assert coloured() < with_point


def test_a_run_that_made_no_row_has_no_curves(tmp_path):
    assert draw_curves(tmp_path) is None


def test_tensorboard_reads_what_is_written(tmp_path):
    import tensorflow as tf

    row = {"step": 7, "epoch": 1.5, "loss": 0.5, "validation_loss": 0.25, "learning_rate": 0.125}
    with EventWriter(tmp_path / "tensorboard") as writer:
        writer.add(row)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    first, second = (
        tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))
    )
    assert first.file_version == "brain.Event:2"
    assert second.step == 7
    assert {value.tag: value.simple_value for value in second.summary.value} == {
        "loss/training": 0.5,
        "loss/validation": 0.25,
        "learning_rate": 0.125,
        "epoch": 1.5,
    }
