"""Training: it learns, it resumes after a kill, it says what is wrong."""

import json
import os
import shutil
import subprocess
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
import small_networks
from eager import eagerly
from small_networks import DECODER, ENCODER, INVERSIONNET, QUICK_COMPILATION
from small_survey import SURVEY, write_data
from synced import note_syncs
from typer.testing import CliRunner
from waiting import wait_until

from models.cli import app
from models.data.gathers import DataError, DecimatedSet, load_decimated
from models.errors import TrainingError
from models.evaluation.comparison import compare_runs, draw_comparison
from models.evaluation.evaluate import evaluate_run
from models.evaluation.scores import score
from models.networks.encoder import PRESETS
from models.networks.federated import Rounds, build_federated
from models.networks.fusion import DECODERS
from models.networks.inversionnet import LAYOUTS
from models.training.budget import Budget, Progress
from models.training.learning import spread_over_devices
from models.training.request import TrainRequest
from models.training.run import split_validation, start_run
from models.training.run_config import read_config
from models.training.training import _save, load_checkpoint
from models.training.warm_start import read_origin
from physics.acquisition import Acquisition

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def fewer_layers():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "micro", ENCODER)
        patched.setitem(DECODERS, "small", DECODER)
        patched.setitem(LAYOUTS, "inversionnet", INVERSIONNET)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A short finished run and its metrics."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("run")
    metrics = start_run(
        TrainRequest("epic", [data], folder, Budget(batch=16, epochs=25), encoder="micro", acquisition=SURVEY)
    )
    return folder, metrics


def test_a_run_learns_and_leaves_everything(run, data):
    folder, metrics = run
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "history.jsonl", "curves.png", "encoder.keras", "decoder.keras", "metrics.json"}
    assert wanted | {"checkpoint", "companding.json"} <= names
    held_out = load_decimated([data], SURVEY, 10)
    mean_map_mae = np.abs(held_out.maps - held_out.maps.mean(axis=0)).mean()
    assert metrics["families"]["all"]["mae"] < 0.75 * mean_map_mae
    assert metrics["epoch"] >= 25
    assert metrics["best"]["step"] <= metrics["step"]


def test_history_of_a_short_run_has_many_rows_and_ends_annealed(run):
    rows = [json.loads(line) for line in (run[0] / "history.jsonl").read_text().splitlines()]
    assert 5 < len(rows) < 60 and all("validation_loss" in row for row in rows)
    assert rows[-1]["learning_rate"] < 1e-6
    assert "validation_mae" in rows[-1]


def test_evaluation_refuses_the_training_data_and_scores_held_out_data(run, data, tmp_path):
    with pytest.raises(TrainingError, match="was trained on; give held-out data"):
        evaluate_run(run[0], [data])
    held_out = write_data(tmp_path / "held-out", 20, seed=9)
    table = evaluate_run(run[0], [held_out])
    assert table["flatvel_a"]["count"] == table["all"]["count"] == 20
    assert table["all"]["mae_mps"] == pytest.approx(1500 * table["all"]["mae"])
    assert -1 <= table["all"]["ssim"] <= 1
    assert 0 < table["all"]["mean_map_mae"] < 1
    with_one_missing = evaluate_run(run[0], [held_out], missing=(1,))
    assert with_one_missing["all"]["mae"] != table["all"]["mae"]
    with pytest.raises(TrainingError, match="cannot leave out devices"):
        evaluate_run(run[0], [held_out], missing=(0, 1, 2))


@eagerly()
def test_the_survey_is_that_of_the_data(data, run, tmp_path):
    """Without being told, a run takes the survey that its data were made for; data of another are refused."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    other = Acquisition.from_dict({**SURVEY.to_dict(), "dx_m": 5.0})
    write_manifest = (folder / "manifest.json").write_text
    write_manifest(json.dumps({"acquisition": SURVEY.to_dict()}))
    started = tmp_path / "run"
    start_run(TrainRequest("epic", [folder], started, Budget(batch=16, epochs=0.2), encoder="micro"))
    assert Acquisition.from_dict(read_config(started).acquisition) == SURVEY
    write_manifest(json.dumps({"acquisition": other.to_dict()}))
    with pytest.raises(DataError, match="was made for another survey"):
        evaluate_run(run[0], [folder])
    # Another number of devices records the same gathers.
    one_device = Acquisition.from_dict({**SURVEY.to_dict(), "device_receivers": [list(range(20))]})
    write_manifest(json.dumps({"acquisition": one_device.to_dict()}))
    assert len(load_decimated([folder], SURVEY, 10)) == 100
    write_manifest("{")
    with pytest.raises(DataError, match="not the manifest of a data set"):
        load_decimated([folder], SURVEY, 10)


@pytest.mark.long
def test_baselines_train_on_the_same_data_and_are_compared_in_one_table(run, data, tmp_path):
    central, federated, held_out = (tmp_path / name for name in ("central", "federated", "held-out"))
    with eagerly():
        metrics = start_run(
            TrainRequest("inversionnet", [data], central, Budget(batch=8, epochs=0.1), acquisition=SURVEY)
        )
    assert metrics["step"] >= 1 and metrics["core_s"] > 0
    assert read_config(central).log_range is not None
    metrics = start_run(
        TrainRequest("federated", [data], federated, Budget(batch=32, epochs=4), acquisition=SURVEY)
    )
    assert metrics["families"]["all"]["mae"] < 0.9 * metrics["families"]["all"]["mean_map_mae"]
    write_data(held_out, 4, seed=9)
    with eagerly():
        compared = compare_runs([run[0], central, federated], [held_out])
        epic, whole, split, averaged = compared.rows
        json.dumps([row.to_dict() for row in compared.rows])
        draw_comparison(compared, tmp_path / "comparison.png")
        assert matplotlib.image.imread(tmp_path / "comparison.png").shape[1] >= 1000
        assert [row.name for row in (whole, split, averaged)] == ["central", "central, split", "federated"]
        assert epic.families == evaluate_run(run[0], [held_out])
        assert epic.bytes_per_event == 3 * 64 and whole.bytes_per_event == 4 * 2 * 200 * 20
        assert averaged.bytes_per_event == 3 * 2 * 20 * 20
        assert split.bytes_per_event == 3 * (13 * 7 * 128 + 8)
        assert whole.device_macs == 0 < epic.device_macs < split.device_macs
        # Rounded activations change the map, hardly.
        assert 0 < abs(split.families["all"]["mae"] - whole.families["all"]["mae"]) < 1e-3
        without = compare_runs([federated], [held_out], missing=(1,)).rows[0]
        assert without.families["all"]["mae"] != averaged.families["all"]["mae"]
        with pytest.raises(TrainingError, match="cannot leave out devices"):
            compare_runs([central], [held_out], missing=(1,))


def test_a_round_ends_in_the_mean_of_what_each_device_comes_to():
    keras.utils.set_random_seed(3)
    network, local = build_federated(SURVEY, 20)
    network.compile(keras.optimizers.AdamW(1e-3), loss="mae", jit_compile=False)
    learn = Rounds(network, local)
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(8, 3, *local.input_shape[1:])).astype("f")
    maps = rng.uniform(-1, 1, (8, 20, 20, 1)).astype("f")
    start = network.get_weights()
    optimizer_start = [np.array(variable) for variable in network.optimizer.variables]

    def after(devices):
        network.set_weights(start)
        for variable, value in zip(network.optimizer.variables, optimizer_start, strict=True):
            variable.assign(value)
        learn({"parts": parts[:, devices]}, maps)
        return network.get_weights()

    each = [after([device]) for device in range(3)]
    for together, *alone in zip(after([0, 1, 2]), *each, strict=True):
        np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-5)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in zip(each[0], each[1], strict=True))


def test_the_validation_set_is_not_trained_on():
    validation, training = split_validation(1000)
    assert len(validation) == 20
    assert not set(validation) & set(training)


@eagerly()
def test_a_new_run_may_begin_with_another_runs_weights(run, data, tmp_path):
    keras.utils.set_random_seed(5)
    other = write_data(tmp_path / "other", seed=5)
    start_run(
        TrainRequest(
            "epic",
            [other],
            tmp_path / "second",
            Budget(batch=16, epochs=0.1, learning_rate=1e-9),
            encoder="micro",
            start_from=run[0],
            acquisition=SURVEY,
        )
    )
    first, second = (load_checkpoint(folder, best=True) for folder in (run[0], tmp_path / "second"))
    pairs = zip(first.trainable_weights, second.trainable_weights, strict=True)
    assert all(np.allclose(a.numpy(), b.numpy(), atol=1e-5) for a, b in pairs)
    # What the first one learnt from, the second one knows.
    for folder in (data, other):
        with pytest.raises(TrainingError, match="was trained on; give held-out data"):
            evaluate_run(tmp_path / "second", [folder])


@eagerly()
def test_a_quantised_run_refines_another_and_leaves_a_plain_encoder(run, data, tmp_path):
    def refine(budget, start_from=run[0]):
        start_run(
            TrainRequest(
                "epic", [data], tmp_path, budget, encoder="micro", start_from=start_from, acquisition=SURVEY
            )
        )

    brief = Budget(batch=16, epochs=0.3, quantised=True)
    with pytest.raises(TrainingError, match="refines a trained EPIC run.*--start-from"):
        refine(brief, start_from=None)
    refine(brief)
    before, after = (
        keras.models.load_model(folder / "encoder.keras", compile=False) for folder in (run[0], tmp_path)
    )
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for old, new in zip(before.weights, after.weights, strict=True):
        moved = not np.array_equal(old, new)
        assert moved == old.trainable, f"{old.path}: the normalisation keeps its statistics, the rest learns"
    # The next run begins with what this one left.
    origin = read_origin(tmp_path)
    for weight in after.weights:
        np.testing.assert_array_equal(origin.encoder["/".join(weight.path.split("/")[-2:])], weight)
    with pytest.raises(TrainingError, match="a run with --quantised; choose an empty folder"):
        refine(Budget(epochs=1))


@eagerly()
def test_an_ordered_run_goes_on_from_another_and_leaves_plain_networks(run, data, tmp_path):
    def order(budget, kind="epic", folder=tmp_path):
        start = run[0] if kind == "epic" else None
        return start_run(
            TrainRequest(kind, [data], folder, budget, encoder="micro", start_from=start, acquisition=SURVEY)
        )

    metrics = order(Budget(batch=16, epochs=0.3, learning_rate=1e-5, ordered=True))
    assert metrics["families"]["all"]["mae"] == pytest.approx(run[1]["families"]["all"]["mae"], rel=0.1)
    before, after = (
        keras.models.load_model(folder / "encoder.keras", compile=False) for folder in (run[0], tmp_path)
    )
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    kernels = (network.get_layer("latent").kernel for network in (before, after))
    assert not np.allclose(*map(np.asarray, kernels), atol=1e-3), "its latent was turned"
    with pytest.raises(TrainingError, match="a run with --nested; choose an empty folder"):
        order(Budget(epochs=1))
    with pytest.raises(TrainingError, match="leave out --nested"):
        order(Budget(epochs=1, ordered=True), "inversionnet", tmp_path / "other")


@eagerly()
def test_a_centralised_run_goes_on_from_another_and_scales_its_input_alike(run, data, tmp_path):
    def go_on(folder, start_from=None, **budget):
        budget = Budget(batch=8, epochs=0.1, **budget)
        return start_run(
            TrainRequest("inversionnet", [data], folder, budget, start_from=start_from, acquisition=SURVEY)
        )

    go_on(tmp_path / "first")
    # By steps so small that the weights are those it begins with, of the other optimiser.
    go_on(tmp_path / "second", tmp_path / "first", optimiser="muon", learning_rate=1e-9)
    first, second = (
        keras.models.load_model(tmp_path / name / "inversionnet.keras", compile=False)
        for name in ("first", "second")
    )
    for old, new in zip(first.trainable_weights, second.trainable_weights, strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)
    ranges = [read_config(tmp_path / name).log_range for name in ("first", "second")]
    assert ranges[0] == ranges[1]
    with pytest.raises(TrainingError, match="expected a run folder of inversionnet, got epic"):
        go_on(tmp_path / "third", run[0])
    with pytest.raises(TrainingError, match="federated run begins with weights of its own"):
        start_run(TrainRequest("federated", [data], tmp_path / "third", Budget(epochs=1), start_from=run[0]))
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "unet"}, "expected one of epic, inversionnet, .*; got 'unet'"),
        ({"kind": "epik"}, "got 'epik'; did you mean 'epic'?"),
        ({"kind": "inversionnet"}, "holds a run of epic with another survey or decimation; choose an empty"),
        ({"decimation": 20}, "another survey or decimation"),
        ({"decimation": 0}, "expected a decimation of 1 to the survey's 200 samples, got 0; correct"),
        ({"decimation": -10}, "expected a decimation of 1 to the survey's 200 samples, got -10"),
        ({"decimation": 201}, "expected a decimation of 1 to the survey's 200 samples, got 201"),
        ({"ablate": "positions"}, "a run without nothing; choose an empty folder"),
        (
            {"ablate": "sense"},
            "expected --ablate of attention, positions, drop-out; got 'sense'",
        ),
        ({"encoder": "small"}, "a run of another encoder than 'small'"),
        ({"encoder": "tiny"}, "expected an encoder of micro, small, base; got 'tiny'"),
    ],
)
def test_a_run_cannot_become_another_and_says_so_before_data_are_loaded(run, tmp_path, changes, message):
    data = tmp_path / "no-data"
    arguments = {"kind": "epic", "encoder": "micro", "decimation": 10, **changes}
    with pytest.raises(TrainingError, match=message):
        start_run(
            TrainRequest(
                arguments["kind"],
                [data],
                run[0],
                Budget(epochs=1),
                decimation=arguments["decimation"],
                ablate=arguments.get("ablate"),
                encoder=arguments["encoder"],
                acquisition=SURVEY,
            )
        )


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="make some with `epic data generate`"):
        load_decimated([tmp_path], SURVEY, 10)


def test_a_checkpoint_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    steps = note_syncs(monkeypatch)
    _save(network, tmp_path, Progress(), None)
    for name in ("network.keras", "progress.json"):
        assert ("synced", str(tmp_path / "checkpoint.new" / name)) in steps
        assert (tmp_path / "checkpoint" / name).exists()


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
import models.training.training
from models.training.request import TrainRequest
from models.training.run import start_run
from models.training.budget import Budget
from small_networks import use_small_networks
from small_survey import SURVEY
use_small_networks()
models.training.training.CHECKPOINT_INTERVAL_S = 0.0
tf.config.run_functions_eagerly(True)
start_run(TrainRequest("epic", [Path(sys.argv[2])], Path(sys.argv[3]), Budget(batch=16, epochs=10_000),
          encoder="micro", acquisition=SURVEY))
"""


@eagerly()
def test_a_killed_run_goes_on_from_its_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    support = os.path.dirname(sys.modules["small_survey"].__file__)
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, support, str(data), str(out)])
    history = out / "history.jsonl"
    try:
        wait_until(lambda: history.exists() and history.read_text().count("\n") > 3, 240, "a few checkpoints")
    finally:
        child.kill()
        child.wait()
    reached = json.loads(history.read_text().splitlines()[-1])
    # A budget that is spent already: resuming finishes at once, from where the run was.
    request = TrainRequest(
        "epic", [data], out, Budget(batch=16, epochs=0.01), encoder="micro", acquisition=SURVEY
    )
    metrics = start_run(request)
    assert reached["step"] - 1 <= metrics["step"] <= reached["step"] + 1
    assert read_config(out).kind == "epic"
    assert (out / "encoder.keras").exists()


@eagerly()
def test_a_run_is_resumed_by_its_folder_and_logs_for_tensorboard(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    before = json.loads((folder / "metrics.json").read_text())
    # Extended by one epoch; encoder and survey are the run's own.
    options = ["--resume", folder, "--epochs", str(before["epoch"] + 1), "--tensorboard", "--json"]
    result = CliRunner().invoke(app, ["train", *map(str, options)])
    assert result.exit_code == 0, result.output
    after = json.loads(result.stdout)
    assert after["epoch"] >= before["epoch"] + 1 and after["step"] > before["step"]
    assert "validation loss" in result.stderr
    assert list((folder / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})


def test_too_few_samples_to_validate_are_refused_before_training(tmp_path):
    few = write_data(tmp_path / "few", 49)
    with pytest.raises(TrainingError, match="expected at least 50 samples, .* got 49; add data"):
        start_run(TrainRequest("epic", [few], tmp_path / "run", Budget(epochs=1), acquisition=SURVEY))
    assert not (tmp_path / "run").exists()


def test_a_survey_too_large_for_a_baseline_is_refused_before_data_are_loaded(tmp_path):
    wide = Acquisition.from_dict({**SURVEY.to_dict(), "n_width": 100})
    for kind in ("inversionnet", "federated"):
        with pytest.raises(TrainingError, match="expected a map of at most 80 x 80 cells"):
            start_run(TrainRequest(kind, [tmp_path], tmp_path / "run", Budget(epochs=1), acquisition=wide))


def test_the_mean_map_of_all_families_lies_between_those_of_each():
    """By samples: one map for all families is a worse guess, and would exceed them both."""
    maps = np.concatenate([np.full((3, 20, 20), -0.5), np.full((1, 20, 20), 0.5)]).astype("f")
    maps[0] += 0.3
    families = np.array(["flatvel_a"] * 3 + ["style_a"])
    data = DecimatedSet(np.zeros((4, 1, 1, 1), np.float16), maps, families, SURVEY, None)
    table = score(maps, data, np.arange(4))
    each = {name: row["mean_map_mae"] for name, row in table.items()}
    assert each["style_a"] == 0 < each["flatvel_a"]
    assert each["all"] == pytest.approx(0.75 * each["flatvel_a"], rel=1e-6)


@pytest.mark.long
def test_accelerators_share_each_batch_and_learn_what_one_learns(data, tmp_path):
    """Keras spreads a batch under JAX alone; two of its devices can be had on any processor."""
    pytest.importorskip("jax", reason="shared batches need JAX, which this installation is without")
    survey = tmp_path / "manifest.json"
    survey.write_text(json.dumps({"acquisition": SURVEY.to_dict()}))
    losses = []
    for devices in (1, 2):
        run = tmp_path / f"on-{devices}"
        environment = os.environ | {
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": f"{QUICK_COMPILATION} --xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, small_networks.__file__, "train", "epic", "--data", data, "--out", run]
        command += ["--encoder", "micro", "--epochs", "1", "--batch", "16", "--survey", survey]
        subprocess.run(list(map(str, command)), env=environment, check=True, timeout=300)
        # Of the last step. The rows before it come by the clock, and the training loss is a mean since the last row.
        last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
        losses.append(last["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_batch_that_accelerators_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    monkeypatch.setattr("keras.distribution.list_devices", lambda: ["gpu:0", "gpu:1", "gpu:2"])
    with pytest.raises(TrainingError, match="a --batch that 3 devices can share, got 32; give a multiple"):
        spread_over_devices(32)
