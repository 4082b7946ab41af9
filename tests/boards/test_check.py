import json

import pytest
from typer.testing import CliRunner

from boards.cli import ERRORS, app

keras = pytest.importorskip("keras", reason="needs the train extra to make an encoder")


@pytest.fixture(scope="module")
def make_bundle(tmp_path_factory):
    """A function writing a bundle of a small int8 encoder with a stated arena."""
    import numpy as np

    from boards.graph import read_graph
    from convert.quantise import quantise
    from firmware_py.bundle import create_bundle

    inputs = keras.Input((12, 6, 2))
    outputs = keras.layers.Dense(8)(keras.layers.Flatten()(keras.layers.Conv2D(4, 3, strides=2)(inputs)))
    parts = np.random.default_rng(0).normal(size=(4, 12, 6, 2)).astype(np.float32)
    model = quantise(keras.Model(inputs, outputs), parts)
    graph = read_graph(model)

    def ends(tensor):
        return {"shape": list(tensor.shape), "scale": tensor.scale, "zero_point": tensor.zero_point}

    def make(arena_bytes):
        folder = tmp_path_factory.mktemp("bundles") / "bundle"
        fields = {
            "input": ends(graph.inputs[0]),
            "output": ends(graph.outputs[0]),
            "companding": {"k": 1.0, "c": 1.0, "thin": 1},
            "arena_bytes": arena_bytes,
        }
        create_bundle(folder, model, fields)
        return folder

    return make


def check(folder, board, *options):
    return CliRunner().invoke(app, ["check", str(folder), "--board", board, *options])


def test_a_bundle_that_fits_gets_its_verdicts_and_the_board_its_status(make_bundle):
    result = check(make_bundle(5000), "esp32-s3", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["fits"] is True
    assert [v["fits"] for v in report["verdicts"]] == [True, True, True]
    assert report["status"] == "documented"
    assert report["note"] == ""


def test_a_bundle_that_does_not_fit_exits_with_one(make_bundle):
    folder = make_bundle(200 * 1024)
    result = check(folder, "esp32-s3")
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert check(folder, "openmv-rt1062").exit_code == 0


def test_an_arena_that_was_not_measured_is_said_to_be_unknown(make_bundle):
    result = check(make_bundle(None), "esp32-s3", "--json")
    arena = next(v for v in json.loads(result.stdout)["verdicts"] if v["question"] == "tensor arena")
    assert arena["fits"] is None
    assert arena["said"].startswith("not measured")


@pytest.mark.parametrize(
    ("board", "compiler"), [("coral-usb-accelerator", "edgetpu_compiler"), ("corstone-300-ethos-u55", "vela")]
)
def test_a_board_with_an_accelerator_says_that_nothing_was_compiled(make_bundle, board, compiler):
    result = check(make_bundle(5000), board, "--json")
    note = json.loads(result.stdout)["note"]
    assert note.startswith("checked against the documented constraints only")
    assert compiler in note


def test_a_bundle_with_a_changed_encoder_is_not_judged(make_bundle):
    folder = make_bundle(5000)
    content = bytearray((folder / "encoder.tflite").read_bytes())
    content[-1] ^= 1
    (folder / "encoder.tflite").write_bytes(content)
    result = check(folder, "esp32-s3")
    assert isinstance(result.exception, ERRORS)
    assert "SHA-256" in str(result.exception)


def test_an_unknown_board_is_a_declared_error(make_bundle):
    result = check(make_bundle(5000), "esp32-s33")
    assert isinstance(result.exception, ERRORS)
    assert "did you mean 'esp32-s3'" in str(result.exception)


def test_the_list_names_every_board_with_its_status():
    boards = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert {"generic-linux", "esp32-s3"} <= {board["name"] for board in boards}
    assert all(board["status"] in ("run here", "verified in emulation", "documented") for board in boards)
    assert "Next: epic board show" in CliRunner().invoke(app, ["list"]).stdout


def test_show_gives_the_source_of_a_figure():
    shown = json.loads(CliRunner().invoke(app, ["show", "coral-dev-board-micro", "--json"]).stdout)
    assert shown["flash"] == {
        "size": 128 * 2**20,
        "source": "Coral Dev Board Micro datasheet, version 1.0, features",
        "note": "NAND",
    }
    table = CliRunner().invoke(app, ["show", "coral-dev-board-micro"]).stdout
    assert "18d1:9308" in table
