"""What lies in a run folder: what it says of its training, and that what is damaged in it is one line."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from small_survey import SURVEY, write_data

from models.data.batches import TrainingData
from models.errors import TrainingError
from models.evaluation.consistency import measure_consistency
from models.evaluation.evaluate import evaluate_run
from models.recipes import recipe_of
from models.training.budget import Budget, Progress
from models.training.request import Setting, TrainRequest
from models.training.run import _survey_of, configure, start_run
from models.training.run_config import read_config, write_json
from models.training.training import Steps, train
from physics.acquisition import Acquisition

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A folder as a run leaves it that has learnt nothing."""
    folder = tmp_path_factory.mktemp("run")
    budget = Budget(batch=16, epochs=1)
    request = TrainRequest("epic", [data], folder, budget, encoder="micro")
    config = configure(request, Setting(SURVEY, log_range=list))
    write_json(folder / "config.json", asdict(config))
    network, parts = recipe_of("epic").build(config, SURVEY)
    for name, part in parts.items():
        part.save(folder / f"{name}.keras")
    recipe_of("epic").compile_model(network, budget)
    assert network.optimizer.built, "its first step is traced once"
    (folder / "checkpoint").mkdir()
    network.save(folder / "checkpoint" / "network.keras")
    write_json(folder / "checkpoint" / "progress.json", vars(Progress()))
    return folder


@pytest.mark.parametrize("content", ["{", "[1]", '{"kind": "epic"}', '{"kind": "epic", "colour": 3}'])
def test_a_damaged_configuration_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        TrainingError, match="config.json: not the configuration of a run .*; copy the run again"
    ):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "expected a Keras network, got a file"),
        (lambda path: path.unlink(), "not found; the run has not finished, resume it with `epic train`"),
        (lambda path: spoil(path, path), "holds NaN or infinity; training has diverged"),
    ],
)
def test_a_damaged_network_is_one_line(run, tmp_path, damage, message):
    copy = shutil.copytree(run, tmp_path / "run")
    held_out = write_data(tmp_path / "held-out", 4, seed=9)
    damage(copy / "encoder.keras")
    for judge in (evaluate_run, lambda run, data: measure_consistency(run, data, 3)):
        with pytest.raises(TrainingError, match=rf"encoder\.keras: .*{message}") as caught:
            judge(copy, [held_out])
        assert "\n" not in str(caught.value)


def spoil(source, target):
    """A saved network with one weight that is not a number."""
    network = keras.models.load_model(source)
    network.weights[0].assign(np.full(network.weights[0].shape, np.nan))
    network.save(target)


def test_a_damaged_checkpoint_is_one_line(run, data, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "checkpoint" / "network.keras"
    whole = path.read_bytes()
    begin = {"encoder": "micro", "acquisition": SURVEY}
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"network\.keras: expected a Keras network"):
        start_run(TrainRequest("epic", [data], copy, Budget(batch=16, epochs=1), **begin))
    with pytest.raises(TrainingError, match=r"network\.keras: expected a Keras network"):
        start_run(
            TrainRequest(
                "epic", [data], tmp_path / "next", Budget(batch=16, epochs=1), start_from=copy, **begin
            )
        )
    path.write_bytes(whole)
    spoil(path, path)
    with pytest.raises(TrainingError, match="holds NaN or infinity; training has diverged"):
        start_run(TrainRequest("epic", [data], copy, Budget(batch=16, epochs=1), **begin))


class OfOneGather:
    """Batches of a network whose loss stays finite while a statistic of its normalisation does not."""

    def training(self, indices, rng):
        return np.full((len(indices), 3), np.inf, "f"), np.zeros((len(indices), 1), "f")


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    image = keras.Input((3,))
    network = keras.Model(image, keras.layers.BatchNormalization()(image))
    network.compile("sgd", loss="mse", jit_compile=False)
    data = TrainingData(OfOneGather(), np.arange(4), np.array([], int))

    def learn(inputs, maps):
        network.train_on_batch(inputs, maps)
        return 0.5

    with pytest.raises(TrainingError, match="holds NaN or infinity; look for loud or damaged gathers"):
        train(network, data, Budget(batch=4, epochs=1), tmp_path, Steps(learn))
    assert not (tmp_path / "checkpoint").exists()


def test_what_a_run_and_its_beginnings_learnt_from_goes_on_in_its_configuration(tmp_path):
    """Also where its data change from one resumption to the next."""

    def configured(data, before=None, simulated=None):
        request = TrainRequest("inversionnet", [tmp_path / data], tmp_path, Budget(epochs=1))
        setting = Setting(SURVEY, lambda: [0.0, 1.0], simulated=simulated, before=before or [])
        config = configure(request, setting)
        write_json(tmp_path / "config.json", asdict(config))
        write_json(tmp_path / "checkpoint" / "progress.json", vars(Progress()))
        return [(Path(stage["data"][0]).name, stage["simulated"]) for stage in config.stages()]

    (tmp_path / "checkpoint").mkdir()
    before = [{"data": ["first"], "simulated": 2000}]
    assert configured("second", before) == [("first", 2000), ("second", None)]
    assert configured("second") == [("first", 2000), ("second", None)]
    assert configured("third", simulated=500) == [("first", 2000), ("second", None), ("third", 500)]
    assert configured("second") == [("first", 2000), ("third", 500), ("second", None)]
    assert len(read_config(tmp_path).before) == 2


def test_an_attempt_that_left_no_checkpoint_gives_the_next_one_nothing(tmp_path):
    """Neither its survey nor its input scaling, stages or kind: the next attempt may start from another run."""

    def configured(kind, low, before, survey):
        request = TrainRequest(kind, [tmp_path / "data"], tmp_path, Budget(epochs=1))
        return configure(request, Setting(survey, lambda: [low, 1.0], before=before))

    first = configured("inversionnet", 0.0, [], replace(SURVEY, dx_m=5.0))
    write_json(tmp_path / "config.json", asdict(first))
    before = [{"data": ["large"], "simulated": 2000}]
    second = configured("bigfwi-m", 0.5, before, SURVEY)
    assert (second.log_range, second.before) == ([0.5, 1.0], before)
    assert _survey_of(tmp_path, []) == Acquisition.openfwi()
    write_json(tmp_path / "config.json", {"name": "of another program"})
    with pytest.raises(TrainingError, match="not the configuration of a run"):
        configured("bigfwi-m", 0.5, before, SURVEY)


@pytest.mark.parametrize("kind", ["federated", "inversionnet"])
def test_a_run_begins_with_its_own_kind_alone(run, data, tmp_path, kind):
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "config.json", asdict(replace(read_config(run), kind=kind)))
    with pytest.raises(TrainingError, match=f"expected a run folder of epic, got {kind}; choose another"):
        begin = {"encoder": "micro", "start_from": other, "acquisition": SURVEY}
        start_run(TrainRequest("epic", [data], tmp_path / "epic", Budget(batch=16, epochs=0.1), **begin))
    assert not (tmp_path / "epic").exists()
