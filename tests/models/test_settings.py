"""The settings of a training: a file, the command line over it, and a run to go on with."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.cli import app
from models.errors import TrainingError
from models.recipes import recipe_of
from models.training.settings import read_settings

FILE = """
kind = "epic"
data = ["data/a", "/data/b"]
out = "runs/mine"
minutes = 60
encoder = "micro"
tensorboard = true
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(FILE)
    return path


def test_a_file_is_read_and_its_paths_begin_at_its_folder(config, tmp_path):
    settings = read_settings({}, config)
    assert settings.data == [tmp_path / "data" / "a", Path("/data/b")]
    assert (settings.out, settings.minutes, settings.encoder) == (tmp_path / "runs" / "mine", 60, "micro")
    request = settings.request()
    assert request.tensorboard and request.budget.optimiser == "muon" and request.budget.learning_rate == 3e-3


def test_options_override_the_file(config):
    settings = read_settings({"encoder": "base", "epochs": 2.0, "seed": None, "quantised": False}, config)
    assert (settings.encoder, settings.epochs, settings.minutes, settings.seed) == ("base", 2.0, None, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning-rate = 1", r"train\.toml: line 8: .*'learning-rate'; did you mean 'learning_rate'\?"),
        ("epoch = 2", "line 8: .*'epoch'; did you mean 'epochs'?"),
        ("[budget]\nminutes = 1", "line 8: .*'budget'"),
        ('epochs = "two"', r"train\.toml: epochs: .*number.*, got 'two'"),
        ("batch = 1.5", r"train\.toml: batch: .*integer.*, got 1\.5"),
        ("kind = ", r"train\.toml: expected TOML"),
    ],
)
def test_a_wrong_key_or_value_is_named(config, line, message):
    config.write_text(FILE + line + "\n")
    with pytest.raises(TrainingError, match=message) as caught:
        read_settings({}, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("minutes", float("nan"), "expected a positive duration"),
        ("minutes", float("inf"), "expected a positive duration"),
        ("epochs", 0.0, "expected a positive duration"),
        ("learning_rate", 0.0, "expected a positive learning rate, got 0; correct --learning-rate"),
        ("learning_rate", -1.0, "expected a positive learning rate, got -1"),
        ("learning_rate", float("nan"), "expected a positive learning rate, got nan"),
        ("weight_decay", float("nan"), "expected a weight_decay of 0 or more, got nan"),
        ("patience", float("nan"), "expected a --patience of more than 0 epochs, got nan"),
    ],
)
def test_a_number_that_cannot_be_is_refused(config, option, value, message):
    with pytest.raises(TrainingError, match=message):
        read_settings({option: value}, config).request()


@pytest.mark.parametrize("is_saved", [True, False])
def test_ctrl_c_advises_to_resume_where_there_is_a_checkpoint(tmp_path, monkeypatch, is_saved):
    run = leave_run(tmp_path / "run") if is_saved else tmp_path / "run"

    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.cli._train", interrupted)
    options = ["epic", "--data", tmp_path, "--out", run, "--minutes", 1]
    said = CliRunner().invoke(app, ["train", *map(str, options)]).stderr
    assert (f"stopped; go on with: epic train --resume {run}" in said) == is_saved
    assert ("stopped; nothing is saved yet; start it again with the same command" in said) != is_saved


@pytest.mark.parametrize("option", [["--missing", "2"], ["--all"]])
def test_an_option_that_the_physics_check_would_ignore_is_refused(tmp_path, option):
    run = leave_run(tmp_path / "run")
    command = ["evaluate", str(run), "--data", str(tmp_path), "--physics", "60", *option]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, TrainingError) and f"leave out {option[0]}, or --physics" in str(error)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        TrainingError, match="train: kind: missing; give KIND, or kind in a file with --config"
    ):
        read_settings({"data": [tmp_path], "out": tmp_path})
    with pytest.raises(TrainingError, match="train: out: missing; give --out"):
        read_settings({"kind": "epic", "data": [tmp_path]})
    with pytest.raises(TrainingError, match=r"none\.toml: cannot be read \(No such file"):
        read_settings({}, tmp_path / "none.toml")


def leave_run(folder, **budget):
    """A run folder as version 0.10 left it, stopped."""
    content = {
        "kind": "epic",
        "data": ["data/train"],
        "acquisition": {},
        "budget": {"batch": 16, "learning_rate": 0.002, "weight_decay": 0.01, "minutes": 30.0, "epochs": None}
        | {"seed": 4, "precision": "float32", "quantised": False, "ordered": True, "optimiser": "muon"},
        "thin": 5,
        "companding": None,
        "encoder": None,
        "decoder": None,
        "log_range": None,
        "without": None,
        "simulated": None,
        "before": [],
    }
    content["budget"] |= budget
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "progress.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_resumed_run_keeps_its_settings(tmp_path):
    run = leave_run(tmp_path / "run")
    request = read_settings({}, resume=run).request()
    assert (request.kind, request.run, request.data, request.decimation) == (
        "epic",
        run,
        [Path("data/train")],
        5,
    )
    budget = request.budget
    assert (budget.batch, budget.learning_rate, budget.weight_decay, budget.minutes) == (
        16,
        0.002,
        0.01,
        30.0,
    )
    assert budget.ordered and budget.seed == 4
    assert request.encoder is None and request.decoder is None, "the run's own"


def test_a_quantised_run_is_resumed_without_naming_what_it_began_with(tmp_path):
    run = leave_run(tmp_path / "run", quantised=True)
    recipe_of("epic").validate(read_settings({}, resume=run).request())


def test_a_resumed_run_may_be_extended(tmp_path):
    run = leave_run(tmp_path / "run")
    assert read_settings({"epochs": 3.0}, resume=run).request().budget.epochs == 3.0


def test_a_run_of_before_optimisers_were_written_down_is_resumed_with_its_own(tmp_path):
    run = leave_run(tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    del content["budget"]["optimiser"]
    (run / "config.json").write_text(json.dumps(content))
    assert read_settings({}, resume=run).optimiser == "adamw"


def test_what_cannot_be_resumed_is_refused(tmp_path, config):
    run = leave_run(tmp_path / "run")
    with pytest.raises(
        TrainingError, match="leave out KIND, --learning-rate, or start another run with --out"
    ):
        read_settings({"kind": "epic", "learning_rate": 1.0}, resume=run)
    with pytest.raises(TrainingError, match="leave out --config"):
        read_settings({}, config, run)
    with pytest.raises(TrainingError, match=r"config\.json: not found; expected a run folder"):
        read_settings({}, resume=tmp_path)
    (run / "checkpoint" / "progress.json").unlink()
    with pytest.raises(TrainingError, match="holds no checkpoint yet; start it again with its first command"):
        read_settings({}, resume=run)
