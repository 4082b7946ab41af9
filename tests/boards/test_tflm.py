import numpy as np
import pytest

from boards.fit import tflm
from boards.fit.arena_probe import ARENA_STEP_BYTES, least_arena_bytes
from boards.quiet import hold_output
from convert import litert
from convert.quantise import rebuild_batch_one

pytest.importorskip("tflite_micro", reason="needs the extra tflm (the TFLite-Micro interpreter)")


@pytest.fixture(scope="module")
def model(bundles):
    return (bundles["small"] / "encoder.tflite").read_bytes()


@pytest.fixture(scope="module")
def arena_bytes(model):
    return tflm.measure_arena_bytes(model)


def codes(n=6):
    return np.random.default_rng(1).integers(-128, 128, size=(n, 100, 14, 5)).astype(np.int8)


def test_the_measured_arena_is_enough_and_a_step_less_is_not(model, arena_bytes):
    assert tflm.run(model, codes(1), arena_bytes).shape == (1, 64)
    with pytest.raises(RuntimeError):
        tflm.run(model, codes(1), arena_bytes - 2 * ARENA_STEP_BYTES)


@pytest.mark.parametrize("needed", [1, 4096, 4097, 36_800, 1_000_001])
def test_the_search_finds_the_least_arena(needed):
    found = least_arena_bytes(lambda arena_bytes: arena_bytes >= needed)
    assert needed <= found < needed + ARENA_STEP_BYTES and found % ARENA_STEP_BYTES == 0


def test_the_arena_holds_at_least_the_largest_pair_of_tensors(arena_bytes):
    first_input, first_feature_map = 100 * 14 * 5, 50 * 14 * 16
    assert arena_bytes > first_input + first_feature_map


def test_tflm_and_the_kernels_of_litert_agree_within_one_step(model, arena_bytes):
    inputs = codes(50)
    difference = tflm.run(model, inputs, arena_bytes).astype(int) - litert.run(model, inputs, xnnpack=False)
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.01


def test_the_interpreter_writes_nothing_to_the_screen(model, capfd):
    tflm.measure_arena_bytes(model)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_model_beyond_the_runtime_is_refused_with_its_reason():
    import keras
    import tensorflow as tf

    inputs = keras.Input((20, 10, 2))
    network = keras.Model(inputs, keras.ops.arctan2(inputs, inputs + 1))
    with hold_output():
        model = tf.lite.TFLiteConverter.from_keras_model(rebuild_batch_one(network)).convert()
    with pytest.raises(tflm.TflmError, match="TFLite-Micro cannot run the model: .*ATAN2"):
        tflm.measure_arena_bytes(model)
