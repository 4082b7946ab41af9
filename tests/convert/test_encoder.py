"""An encoder of the user's own for a run's decoder: what fits is converted, what does not is one clear line."""

import json
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="conversion needs the train extra")

from typer.testing import CliRunner  # noqa: E402

import convert.quantise  # noqa: E402
from convert.cli import app  # noqa: E402
from convert.encoder import check_encoder  # noqa: E402
from convert.errors import ConversionError, QuantisationError  # noqa: E402
from convert.quantise import quantise  # noqa: E402
from convert.run_folder import read_run  # noqa: E402
from models.errors import TrainingError  # noqa: E402

PART = (20, 10, 2)
layers = keras.layers


def own_encoder(latent=16):
    """A network of another design than EPIC's."""
    keras.utils.set_random_seed(11)
    stack = [keras.Input(PART), layers.Conv2D(6, 3, strides=2, activation="relu"), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(latent)])


def recurrent_encoder():
    stack = [keras.Input(PART), layers.Reshape((20, 20)), layers.LSTM(8, name="memory"), layers.Dense(16)]
    return keras.Sequential(stack)


def two_inputs():
    inputs = [keras.Input(PART), keras.Input((5,))]
    joined = layers.Concatenate()([layers.Flatten()(inputs[0]), inputs[1]])
    return keras.Model(inputs, layers.Dense(16)(joined))


def two_outputs():
    part = keras.Input(PART)
    flat = layers.Flatten()(part)
    return keras.Model(part, [layers.Dense(16)(flat), layers.Dense(16)(flat)])


def within_a_network():
    return keras.Sequential([keras.Input(PART), recurrent_encoder()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: own_encoder(8),
            r"expected one output of \(16,\).*got 1 output: \(8,\); end with Dense\(16\)",
        ),
        (two_inputs, r"expected one input of \(20, 10, 2\) = \(time, .*got 2 inputs: \(20, 10, 2\), \(5,\)"),
        (two_outputs, r"expected one output of \(16,\).*got 2 outputs"),
        (recurrent_encoder, r"layer memory \(LSTM\) is recurrent"),
        (within_a_network, r"layer memory \(LSTM\) is recurrent"),
    ],
)
def test_an_encoder_that_does_not_fit_is_one_line(tmp_path, build, message):
    with pytest.raises(ConversionError, match=message) as caught:
        check_encoder(build(), tmp_path / "my.keras", PART, 16)
    assert "my.keras" in str(caught.value) and "\n" not in str(caught.value)


def test_a_fitting_encoder_passes(tmp_path, tiny_encoder):
    check_encoder(own_encoder(), tmp_path, PART, 16)
    check_encoder(tiny_encoder(), tmp_path, PART, 16)


@pytest.mark.slow
def test_a_run_whose_encoder_was_replaced_is_checked_too(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    recurrent_encoder().save(run / "encoder.keras")
    with pytest.raises(QuantisationError, match=r"run/encoder\.keras: layer memory \(LSTM\) is recurrent"):
        read_run(run)


@pytest.mark.slow
def test_an_encoder_file_that_is_none_is_one_line(tiny_run, tmp_path):
    with pytest.raises(ConversionError, match=r"my\.keras: not found; expected a Keras file"):
        read_run(tiny_run.folder, tmp_path / "my.keras")
    (tmp_path / "my.keras").write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"my\.keras: expected a Keras network, got a file Keras refuses"):
        read_run(tiny_run.folder, tmp_path / "my.keras")


@pytest.mark.slow
def test_an_own_encoder_is_converted_with_the_decoder_of_a_run(tiny_run, tmp_path):
    own_encoder().save(tmp_path / "my.keras")
    out = tmp_path / "released"
    arguments = [tiny_run.folder, "--encoder", tmp_path / "my.keras", "--out", out]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "bundle" / "manifest.json").read_text())
    assert manifest["metrics"]["operators"] == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "RESHAPE": 1}
    own = json.loads((out / "decoder" / "decoder.json").read_text())
    assert own["model_hash"] == manifest["model_hash"]


DEATHS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": r"died \(SIGSEGV\) on an encoder of Conv2D, Dense",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": r"died \(SIGKILL, perhaps for lack of memory\)",
    "raise SystemExit('no TensorFlow')": r"died \(exit code 1: no TensorFlow\)",
}


@pytest.mark.parametrize("code", DEATHS)
def test_a_converter_that_dies_is_an_error_message(monkeypatch, code):
    monkeypatch.setattr(convert.quantise, "CONVERTER", (sys.executable, "-c", code))
    with pytest.raises(QuantisationError, match=DEATHS[code]) as caught:
        quantise(own_encoder(), np.ones((2, *PART), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_lstm_that_gets_as_far_as_the_converter_does_not_take_this_process_with_it():
    with pytest.raises(QuantisationError, match="the TFLite converter (refused|died)"):
        quantise(recurrent_encoder(), np.random.default_rng(0).normal(size=(4, *PART)).astype("f"))
