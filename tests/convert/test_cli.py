import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("keras", reason="conversion needs the train extra")

from convert.cli import app
from epic import base_errors


def test_convert_prints_json_alone_and_writes_the_release(tiny_run, tmp_path):
    out = tmp_path / "released"
    result = CliRunner().invoke(
        app, [str(tiny_run.folder), "--out", str(out), "--board", "esp32-s3-esp-idf", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["target"].startswith("ESP32-S3")
    assert report["model_bytes"] == (out / "bundle" / "encoder.tflite").stat().st_size
    assert report["overall"]["n"] == 4


def test_convert_prints_a_table_with_every_family(tiny_run, tmp_path):
    result = CliRunner().invoke(app, [str(tiny_run.folder), "--out", str(tmp_path / "released")])
    assert result.exit_code == 0, result.output
    for word in ("flatvel_a", "flatfault_b", "all", "model file", "tensor arena", "Written"):
        assert word in result.stdout


@pytest.mark.parametrize("arguments", [["--board", "esp33"], []])
def test_what_goes_wrong_is_of_the_declared_kinds(tmp_path, arguments):
    result = CliRunner().invoke(app, [str(tmp_path / "none"), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code != 0
    assert isinstance(result.exception, base_errors())
    assert "\n" not in str(result.exception)
