"""What was trained on is not held out, by whatever path, link, seed or earlier run it comes."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from small_survey import SURVEY, write_data
from typer.testing import CliRunner

from models.cli import app
from models.data.held_out import check_held_out, uncompared
from models.errors import TrainingError
from models.evaluation.evaluate import load_held_out
from models.training.budget import Budget
from models.training.request import Setting, TrainRequest
from models.training.run import configure
from models.training.run_config import RunConfig, write_json


def config_of(*data, **changes):
    values = {
        "kind": "epic",
        "data": [str(folder) for folder in data],
        "acquisition": SURVEY.to_dict(),
        "budget": {},
        "thin": 10,
        **dict.fromkeys(("companding", "encoder", "decoder", "log_range")),
        **changes,
    }
    return RunConfig(**values)


def refused(config, *data):
    try:
        check_held_out(config, list(data))
    except TrainingError as error:
        assert "was trained on; give held-out data" in str(error) and "\n" not in str(error)
        return True
    return False


@pytest.fixture
def trained(tmp_path):
    return write_data(tmp_path / "data" / "train", 2)


def test_a_folder_within_or_around_the_training_data_is_not_held_out(trained, tmp_path):
    other = write_data(tmp_path / "held-out", 2)
    assert refused(config_of(trained), trained)
    assert refused(config_of(trained), trained.parent)
    assert refused(config_of(trained), trained / "FlatVel_A")
    assert refused(config_of(trained / "FlatVel_A"), trained)
    assert refused(config_of(other, trained), other)
    assert not refused(config_of(trained), other)
    assert not refused(config_of(trained / "gone"), other)
    with pytest.raises(TrainingError, match="was trained on; give held-out data"):
        load_held_out(config_of(trained), [trained.parent])


def test_a_link_is_what_it_leads_to(trained, tmp_path):
    links = tmp_path / "links" / "FlatVel_A"
    links.mkdir(parents=True)
    for name in ("data1.npy", "model1.npy"):
        (links / name).symlink_to(trained / "FlatVel_A" / name)
    (tmp_path / "whole").symlink_to(trained)
    for one, other in ((trained, links.parent), (trained, tmp_path / "whole"), (links, tmp_path / "whole")):
        assert refused(config_of(one), other)
        assert refused(config_of(other), one)


def draw(folder, seed, first, count, families=("flatvel_a",), **more):
    """Files with the manifest of `epic data generate`; what is in them is of no account."""
    for family in families:
        target = folder / {"flatvel_a": "FlatVel_A", "style_a": "Style_A"}[family]
        target.mkdir(parents=True)
        np.save(target / "data1.npy", np.zeros(3))
    manifest = {"families": list(families), "count": count, "first": first, "seed": seed, **more}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("seed", "first", "families", "clashes"),
    [
        (3, 0, ("flatvel_a",), True),
        (3, 99, ("flatvel_a",), True),
        (3, 100, ("flatvel_a",), False),
        (4, 0, ("flatvel_a",), False),
        (3, 0, ("style_a",), False),
        (3, 0, ("style_a", "flatvel_a"), True),
    ],
)
def test_maps_of_the_same_seed_and_numbers_are_the_same_by_any_engine(
    tmp_path, seed, first, families, clashes
):
    trained = draw(tmp_path / "a", 3, 0, 100, engine="cuda")
    other = draw(tmp_path / "b", seed, first, 20, families, engine="openfwi")
    assert refused(config_of(trained), other) == clashes
    if clashes:
        with pytest.raises(
            TrainingError, match=rf"flatvel_a, seed 3, samples {first} to {first + 19}: .* 0 to 99"
        ):
            check_held_out(config_of(trained), [other])
        # A part of the set alone.
        assert refused(config_of(trained), other / "FlatVel_A")
        # Sorted as a download, with gathers and maps apart.
        (other / "FlatVel_A" / "data").mkdir()
        (other / "FlatVel_A" / "data1.npy").rename(other / "FlatVel_A" / "data" / "data1.npy")
        assert refused(config_of(trained), other)


def test_samples_that_were_simulated_beyond_the_files_count(tmp_path):
    trained = draw(tmp_path / "a", 3, 0, 100)
    other = draw(tmp_path / "b", 3, 5000, 20)
    assert not refused(config_of(trained), other)
    assert refused(config_of(trained, simulated=20_000), other)


def test_what_a_run_began_with_was_trained_on_too(trained, tmp_path):
    now = write_data(tmp_path / "now", 2)
    own = config_of(now)
    assert not refused(own, trained)
    assert refused(replace(own, before=config_of(trained).stages()), trained)
    drawn = draw(tmp_path / "a", 3, 0, 100)
    earlier = config_of(drawn, simulated=20_000).stages()
    assert refused(replace(own, before=earlier), draw(tmp_path / "b", 3, 5000, 20))


def test_training_data_that_are_gone_are_known_by_seed_and_numbers_and_named(tmp_path):
    trained, other = draw(tmp_path / "a", 3, 0, 100), draw(tmp_path / "b", 3, 5000, 20)
    same = draw(tmp_path / "c", 3, 50, 20)
    request = TrainRequest("inversionnet", [trained], tmp_path / "run", Budget(epochs=1))
    own, more = (configure(request, Setting(SURVEY, lambda: [0.0, 1.0], simulated=n)) for n in (None, 20_000))
    assert own.drawn == [["flatvel_a", 3, 0, 99]] and more.drawn == [["flatvel_a", 3, 0, 19_999]]
    assert uncompared(own) == []
    shutil.rmtree(trained)
    assert refused(own, same) and not refused(own, other) and refused(more, other)
    assert refused(replace(config_of(tmp_path), before=own.stages()), same)
    assert [line.split(";")[1] for line in uncompared(own)] == [
        " test data are compared with it by seed and sample numbers alone"
    ]
    (line,) = uncompared(config_of(trained))
    assert str(trained) in line and "not compared with it, so make sure that they are others" in line


def test_training_data_are_found_from_another_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = TrainRequest("inversionnet", [Path("data/train")], Path("run"), Budget(epochs=1))
    config = configure(request, Setting(SURVEY, lambda: [0.0, 1.0]))
    monkeypatch.chdir("/")
    assert config.data == [str(trained)], "a run resumed or converted elsewhere finds them too"
    assert refused(config, trained)


def test_evaluation_says_which_training_data_are_gone(trained, tmp_path):
    other = write_data(tmp_path / "held-out", 2)
    write_json(tmp_path / "config.json", asdict(config_of(trained, tmp_path / "gone")))
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--data", str(other)])
    assert f"warning: {tmp_path / 'gone'}: expected training data" in result.stderr
    assert str(trained) not in result.stderr


@pytest.mark.parametrize("content", ["{", "[1]", '{"families": 3}', '{"acquisition": {}}'])
def test_a_manifest_of_something_else_says_nothing(trained, tmp_path, content):
    other = write_data(tmp_path / "held-out", 2)
    for folder in (trained, other):
        (folder / "manifest.json").write_text(content)
    assert not refused(config_of(trained), other)
