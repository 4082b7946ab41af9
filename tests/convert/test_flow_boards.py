"""Conversion for a board: what does not fit it, and what its accelerator's compiler makes of the encoder."""

import pytest

pytest.importorskip("keras", reason="conversion needs the train extra")

from boards.fit import tflm
from boards.fit.graph import read_graph
from boards.profile import Figure, load_board
from convert.c_array import c_sources
from convert.errors import BudgetError, QuantisationError
from convert.flow import convert_run
from firmware_py.inference.bundle import load_bundle
from firmware_py.inference.self_test import read_vectors

pytestmark = pytest.mark.slow


def test_an_encoder_too_big_for_the_board_says_by_how_much_and_what_to_do(tiny_run, tmp_path):
    small = load_board("esp32-s3-esp-idf").model_copy(
        update={"model_limit": Figure(size="1 KiB", source="a test")}
    )
    with pytest.raises(
        BudgetError,
        match=r"model file: [\d,]+ B: [\d,]+ B over the 1 KiB of ESP32-S3.*train a smaller encoder",
    ):
        convert_run(tiny_run.folder, tmp_path / "out", board=small)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not tflm.available(), reason="needs the extra tflm (the TFLite-Micro interpreter)")
def test_an_arena_too_big_for_the_board_says_what_to_do(tiny_run, tmp_path):
    small = load_board("esp32-s3-esp-idf").model_copy(
        update={"arena_limit": Figure(size="1 KiB", source="a test")}
    )
    with pytest.raises(BudgetError, match=r"tensor arena: .* over the 1 KiB .*train with more decimation"):
        convert_run(tiny_run.folder, tmp_path / "out", board=small)


def test_a_bundle_for_an_ethos_u_holds_what_vela_made(tiny_run, tmp_path):
    pytest.importorskip("ethosu", reason="needs the extra vela")
    conversion = convert_run(
        tiny_run.folder, tmp_path / "out", load_board("corstone-300-ethos-u55"), c_array=True
    )
    bundle = load_bundle(tmp_path / "out" / "bundle")
    done = bundle.manifest["metrics"]["accelerator"]
    assert done == conversion.accelerator
    assert (done["compiler"], done["done"], done["on_cpu"]) == ("vela", "compiled", [])
    assert done["cycles"] > 0
    compiled = (bundle.folder / "encoder_vela.tflite").read_bytes()
    assert "CUSTOM:ethos-u" in read_graph(compiled).operators
    linked = c_sources(compiled, bundle.manifest, read_vectors(bundle))["encoder.c"]
    assert linked == (bundle.folder / "encoder.c").read_bytes()
    assert "ethos-u-vela" in bundle.manifest["versions"]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_manifest_says_which_check_the_edge_tpu_had(
    tiny_run, tmp_path, monkeypatch, compiled, fake_edgetpu
):
    if compiled:
        fake_edgetpu([("CONV_2D", 2, "Mapped to Edge TPU"), ("FULLY_CONNECTED", 1, "Mapped to Edge TPU")])
    else:
        monkeypatch.setenv("PATH", "/nonexistent")
    convert_run(tiny_run.folder, tmp_path / "out", load_board("coral-dev-board"))
    bundle = load_bundle(tmp_path / "out" / "bundle")
    done = bundle.manifest["metrics"]["accelerator"]
    assert done["compiler"] == "edgetpu_compiler"
    assert done["done"] == ("compiled" if compiled else "documented constraints")
    assert ("encoder_edgetpu.tflite" in bundle.manifest["files"]) is compiled


def test_an_operator_that_the_accelerator_does_not_take_is_named(tiny_run, tmp_path, fake_edgetpu):
    fake_edgetpu([("CONV_2D", 2, "Mapped to Edge TPU"), ("FULLY_CONNECTED", 1, "Operation not supported")])
    with pytest.raises(
        QuantisationError, match=r"left on the CPU .*: 1 FULLY_CONNECTED \(Operation not supported\)"
    ):
        convert_run(tiny_run.folder, tmp_path / "out", load_board("coral-dev-board"))
    assert not (tmp_path / "out").exists()
