"""`epic board check` on three bundles and every board: what fits, and what is said of what does not."""

import importlib.util
import json

import pytest
from typer.testing import CliRunner

from boards.cli import app
from boards.fit import edgetpu, tflm, vela
from boards.fit.accelerator import CompilerError
from boards.fit.check import check_bundle
from boards.profile import board_names, load_board
from epic import base_errors

# Board -> for each bundle of conftest.SIZES the questions that it fails; none where it fits.
#
# small  99 kB of file, 21,584 B of arena: fits everywhere.
# long   487 kB, 508,144 B of arena: too long for the heap of the Nicla, and with the file beyond the 256 KiB of an
#        ESP32-S3 with C code. The cameras with SDRAM take both from their heap.
# heavy  1,084,944 B of file: beyond the 1 MiB that Linux boards and Corstone-300 allow, and the 256 KiB of an ESP32-S3
#        with C code; the Nicla streams it by native code, for its heap cannot hold it. Vela also leaves its convolution
#        of stride 4 on the CPU.
# What runs the encoder by MicroPython's native code keeps the long feature maps in its heap.
EXPECTED = {
    "arduino-giga-r1": ((), (), ()),
    "arduino-nicla-vision": ((), ("heap",), ()),
    "arduino-portenta-h7": ((), (), ()),
    "coral-dev-board": ((), (), ("model file",)),
    "coral-dev-board-micro": ((), (), ()),
    "coral-usb-accelerator": ((), (), ("model file",)),
    "corstone-300-ethos-u55": ((), (), ("model file", "Ethos-U")),
    "esp32-c3": ((), ("heap",), ("model file", "heap")),
    "esp32-s3": ((), ("heap",), ("model file", "heap")),
    "esp32-s3-esp-idf": ((), ("model file", "tensor arena"), ("model file",)),
    "esp32-s3-psram": ((), (), ("model file",)),
    "generic-linux": ((), (), ("model file",)),
    "openmv-ae3": ((), (), ()),
    "openmv-h7-plus": ((), (), ()),
    "openmv-n6": ((), (), ()),
    "openmv-rt1062": ((), (), ()),
    "raspberry-pi-4": ((), (), ("model file",)),
    "raspberry-pi-5": ((), (), ("model file",)),
    "raspberry-pi-pico-2-w": ((), ("heap",), ("model file",)),
    "raspberry-pi-pico-w": ((), ("heap",), ("model file", "heap")),
    "raspberry-pi-zero-2w": ((), (), ("model file",)),
    "teensy-4-1": ((), ("heap",), ("model file",)),
}
CASES = [
    (board, bundle, failed)
    for board, expected in EXPECTED.items()
    for bundle, failed in zip(("small", "long", "heavy"), expected, strict=True)
]


def check(folder, board, *options):
    return CliRunner().invoke(app, ["check", str(folder), "--board", board, *options])


def report(folder, board):
    return json.loads(check(folder, board, "--json").stdout)


def failed(found):
    return tuple(verdict["question"] for verdict in found["verdicts"] if verdict["fits"] is False)


def test_the_table_has_every_board_and_one_bundle_is_too_big_for_half_of_them():
    assert set(EXPECTED) == set(board_names())
    assert sum(bool(heavy) for _, _, heavy in EXPECTED.values()) >= len(EXPECTED) / 2


@pytest.mark.parametrize(("board", "bundle", "expected"), CASES)
def test_the_verdict_is_right(bundles, board, bundle, expected, monkeypatch):
    # The table is of the documented constraints, also on a machine that has the compiler.
    monkeypatch.setattr(edgetpu, "available", lambda: False)
    if board == "corstone-300-ethos-u55" and not vela.available():
        pytest.skip(vela.MISSING)
    result = check(bundles[bundle], board, "--json")
    found = json.loads(result.stdout)
    assert failed(found) == expected
    assert result.exit_code == (1 if expected else 0)
    assert found["fits"] is not bool(expected)
    for verdict in found["verdicts"]:
        assert (verdict["advice"] != "") is (verdict["fits"] is False), (
            "what does not fit, and only that, has advice"
        )


def test_the_bytes_that_are_too_many_and_what_would_help_are_said(bundles):
    result = check(bundles["heavy"], "raspberry-pi-4")
    said = " ".join(result.stdout.replace("│", " ").split())
    over = (bundles["heavy"] / "encoder.tflite").stat().st_size - 2**20
    assert result.exit_code == 1
    assert f"{over:,} B over the 1 MiB of Raspberry Pi 4 Model B" in said
    assert "to stay within 1 MiB train a smaller encoder" in said


def test_scratch_buffers_of_the_boards_kernels_count(bundles):
    """The same encoder needs more on a board whose kernels copy filter and input."""
    said = {
        board: next(
            v["said"]
            for v in report(bundles["small"], board)["verdicts"]
            if v["question"] in ("tensor arena", "heap")
        )
        for board in ("esp32-s3-esp-idf", "openmv-rt1062", "generic-linux")
    }
    assert "B for scratch buffers of esp-nn" in said["esp32-s3-esp-idf"]
    assert "B for scratch buffers of cmsis-nn" in said["openmv-rt1062"]
    assert "scratch" not in said["generic-linux"]


def test_where_ml_has_no_room_the_native_code_is_judged_and_said_to_be_what_runs(bundles):
    found = report(bundles["heavy"], "arduino-nicla-vision")
    runtime = next(v for v in found["verdicts"] if v["question"] == "runtime")
    assert runtime["said"].startswith("native code (viper); not ml: arena of")
    assert "too much for blocks of 30 KiB + 63 KiB + 276 KiB" in runtime["said"]
    assert not any(v["question"] == "runtime" for v in report(bundles["small"], "openmv-ae3")["verdicts"])


def test_a_manifest_that_lies_about_its_arena_is_not_believed(bundles, tmp_path):
    folder = edited(bundles["long"], tmp_path, arena_bytes=1000)
    found = report(folder, "esp32-s3-esp-idf")
    assert failed(found) == ("model file", "tensor arena")
    assert "measured in TFLite-Micro" in found["arena_source"]
    assert "(the manifest states 1,000 B)" in found["arena_source"]


def test_without_tflm_the_manifests_figure_is_used_and_said_to_be(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(tflm, "available", lambda: False)
    found = report(edited(bundles["small"], tmp_path, arena_bytes=1000), "esp32-s3-esp-idf")
    assert found["arena_bytes"] == 1000
    assert found["arena_source"] == "as the manifest states (not measured here)"
    nothing = report(edited(bundles["small"], tmp_path, arena_bytes=None), "esp32-s3-esp-idf")
    assert nothing["fits"] is None
    assert nothing["arena_source"].startswith("not measured: the package tflite-micro is not installed")


def test_a_model_that_tflm_cannot_run_does_not_fit_and_its_reason_is_given(bundles, monkeypatch):
    def refuse(model):
        raise tflm.TflmError("TFLite-Micro cannot run the model: unsupported stride")

    monkeypatch.setattr(tflm, "measure_arena_bytes", refuse)
    found = report(bundles["small"], "esp32-s3-esp-idf")
    assert failed(found) == ("tensor arena",)
    assert "unsupported stride" in found["arena_source"]


@pytest.mark.parametrize("stated", ["36800", -1, 1.5])
def test_an_arena_that_is_no_number_of_bytes_is_refused(bundles, tmp_path, stated):
    result = check(edited(bundles["small"], tmp_path, arena_bytes=stated), "esp32-s3-esp-idf")
    assert isinstance(result.exception, base_errors())
    assert "arena_bytes of the manifest: expected a number of bytes or null" in str(result.exception)


def test_without_vela_the_ethos_u_is_not_known_and_the_package_is_named(bundles, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = check(bundles["small"], "corstone-300-ethos-u55", "--json")
    found = json.loads(result.stdout)
    assert found["fits"] is None
    assert result.exit_code == 0
    (verdict,) = (v for v in found["verdicts"] if v["question"] == "Ethos-U")
    assert verdict["said"] == "not compiled: the package ethos-u-vela is not installed (extra `vela`)"
    assert found["accelerator"] == {"compiler": "vela", "done": "not compiled"}


@pytest.mark.skipif(not vela.available(), reason=vela.MISSING)
def test_the_ethos_u_has_velas_cycles_and_memory_and_nothing_left(bundles):
    found = report(bundles["small"], "corstone-300-ethos-u55")
    accelerator = found["accelerator"]
    assert accelerator["done"] == "compiled"
    assert accelerator["on_cpu"] == []
    assert accelerator["cycles"] > 10_000
    # The input alone is 7,000 B, and Vela was told that there is 1 MiB.
    assert 7_000 < accelerator["sram_bytes"] < 2**20
    arena = next(v for v in found["verdicts"] if v["question"] == "tensor arena")
    assert f"{accelerator['sram_bytes']:,} B planned by vela" in arena["said"]


@pytest.mark.skipif(not vela.available(), reason=vela.MISSING)
def test_what_vela_leaves_on_the_cpu_is_named(bundles):
    (verdict,) = (
        v
        for v in report(bundles["heavy"], "corstone-300-ethos-u55")["verdicts"]
        if v["question"] == "Ethos-U"
    )
    assert verdict["said"] == "left on the CPU by vela: CONV_2D"


@pytest.mark.skipif(not vela.available(), reason=vela.MISSING)
def test_what_vela_says_when_it_fails_is_passed_on(bundles):
    model = (bundles["small"] / "encoder.tflite").read_bytes()
    with pytest.raises(CompilerError, match=r"Vela failed: .*ethos-u99.*") as caught:
        vela.compile_encoder(model, ("--accelerator-config", "ethos-u99"), 2**20)
    assert "\n" not in str(caught.value)


def test_without_its_compiler_the_edge_tpu_has_its_constraints_checked(bundles, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    found = report(bundles["small"], "coral-dev-board")
    (verdict,) = (v for v in found["verdicts"] if v["question"] == "Edge TPU")
    assert verdict["said"] == f"its documented constraints hold; not compiled, {edgetpu.MISSING}"
    assert found["accelerator"] == {"compiler": "edgetpu_compiler", "done": "documented constraints"}


def test_with_its_compiler_the_edge_tpu_has_the_log_read(bundles, fake_edgetpu):
    fake_edgetpu(
        [
            ("CONV_2D", 4, edgetpu.MAPPED),
            ("RESHAPE", 1, edgetpu.MAPPED),
            ("FULLY_CONNECTED", 1, edgetpu.MAPPED),
        ]
    )
    found = check_bundle(bundles["small"], load_board("coral-dev-board"))
    assert found.fits is True
    assert found.accelerator is not None
    assert found.accelerator["done"] == "compiled"
    assert found.accelerator["version"] == "16.0.384591198"
    assert found.accelerator["operators_mapped"] == 6


def test_what_the_edge_tpu_compiler_does_not_map_fails_with_its_reason(bundles, fake_edgetpu):
    why = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
    fake_edgetpu(
        [
            ("CONV_2D", 4, edgetpu.MAPPED),
            ("RESHAPE", 1, why),
            ("FULLY_CONNECTED", 1, "More than one subgraph is not supported"),
        ]
    )
    found = report(bundles["small"], "coral-usb-accelerator")
    (verdict,) = (v for v in found["verdicts"] if v["fits"] is False)
    assert verdict["said"] == (
        f"left on the CPU by edgetpu_compiler: 1 RESHAPE ({why}), "
        "1 FULLY_CONNECTED (More than one subgraph is not supported)"
    )


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (
            {"fails": "Invalid model: encoder.tflite"},
            "edgetpu_compiler failed: Invalid model: encoder.tflite",
        ),
        ({"rows": []}, "expected rows of operator, count and status in its log, got none"),
    ],
)
def test_an_edge_tpu_compiler_that_fails_is_not_taken_for_a_fit(bundles, fake_edgetpu, fake, said):
    fake_edgetpu(**fake)
    found = report(bundles["small"], "coral-dev-board")
    (verdict,) = (v for v in found["verdicts"] if v["fits"] is False)
    assert said in verdict["said"]
    assert found["accelerator"]["done"] == "documented constraints"


def edited(bundle, tmp_path, **fields):
    """A copy of a bundle whose manifest says something else; its files are as they were."""
    folder = tmp_path / "edited"
    folder.mkdir(exist_ok=True)
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    return folder
