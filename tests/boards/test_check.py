import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from boards.cli import app
from epic import base_errors


def check(folder, board, *options):
    return CliRunner().invoke(app, ["check", str(folder), "--board", board, *options])


def test_a_bundle_that_fits_gets_its_verdicts_and_the_board_its_status(bundles):
    result = check(bundles["small"], "esp32-s3-esp-idf", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["fits"] is True
    assert [v["fits"] for v in report["verdicts"]] == [True, True, True]
    assert report["status"] == "documented"
    assert report["accelerator"] is None


def test_a_bundle_with_a_changed_encoder_is_not_judged(bundles, tmp_path):
    folder = Path(shutil.copytree(bundles["small"], tmp_path / "changed"))
    content = bytearray((folder / "encoder.tflite").read_bytes())
    content[-1] ^= 1
    (folder / "encoder.tflite").write_bytes(content)
    result = check(folder, "esp32-s3-esp-idf")
    assert isinstance(result.exception, base_errors())
    assert "SHA-256" in str(result.exception)


def test_an_unknown_board_is_a_declared_error(bundles):
    result = check(bundles["small"], "esp32-s33")
    assert isinstance(result.exception, base_errors())
    assert "did you mean 'esp32-s3'" in str(result.exception)


def test_the_list_names_every_board_with_its_status():
    boards = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert {"generic-linux", "esp32-s3"} <= {board["name"] for board in boards}
    assert all(board["status"] in ("verified", "verified in emulation", "documented") for board in boards)
    assert "Next: epic board show" in CliRunner().invoke(app, ["list"]).stdout


def test_the_list_fits_80_columns_and_cuts_no_name():
    names = [board["name"] for board in json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)]
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["list"]).stdout.splitlines()
    table = [line for line in lines if line and not line.startswith("Next")]
    assert max(map(len, table[:-1])) <= 80
    cells = {line.strip("│").split("│")[0].strip() for line in table}
    assert set(names) <= cells


def test_show_gives_the_source_of_a_figure():
    shown = json.loads(CliRunner().invoke(app, ["show", "coral-dev-board-micro", "--json"]).stdout)
    assert shown["flash"] == {
        "size": 128 * 2**20,
        "source": "Coral Dev Board Micro datasheet, version 1.0, features",
        "note": "NAND",
    }
    table = CliRunner().invoke(app, ["show", "coral-dev-board-micro"]).stdout
    assert "18d1:9308" in table


def test_show_gives_kernels_and_compiler_with_their_sources():
    kernels = json.loads(CliRunner().invoke(app, ["show", "esp32-s3-esp-idf", "--json"]).stdout)["kernels"]
    assert kernels["name"] == "esp-nn"
    assert "ESP-NN" in kernels["source"]
    table = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "corstone-300-ethos-u55"]).stdout
    assert "ethos-u55-128" in table
