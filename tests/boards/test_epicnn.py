"""What the compiler for stock MicroPython writes, and what it refuses by name."""

import hashlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from encoder_models import edited

from boards.fit.epicnn import EpicnnError, _multiplier, compile_encoder, read_memory, reference_latents
from firmware_py.inference.bundle import EPICNN, load_bundle
from firmware_py.inference.self_test import read_vectors
from testbed.run import DEFAULT_MODEL

MODEL = (DEFAULT_MODEL.parent / "epic-micro-64" / "bundle" / "encoder.tflite").read_bytes()


def operators(parsed, name):
    """Operators of a kind, with the tensors of the graph."""
    number = getattr(schema.BuiltinOperator, name)
    graph = parsed.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in parsed.operatorCodes]
    return [operator for operator in graph.operators if codes[operator.opcodeIndex] == number], graph.tensors


def dilate(parsed):
    found, _ = operators(parsed, "CONV_2D")
    found[1].builtinOptions.dilationHFactor = 2


def one_scale(parsed):
    found, tensors = operators(parsed, "FULLY_CONNECTED")
    quantization = tensors[found[0].inputs[1]].quantization
    quantization.scale, quantization.zeroPoint = quantization.scale[:1], quantization.zeroPoint[:1]


def small_output(parsed):
    found, tensors = operators(parsed, "CONV_2D")
    tensors[found[0].outputs[0]].quantization.scale = [1e-6]


def large_bias(parsed):
    found, tensors = operators(parsed, "CONV_2D")
    buffer = parsed.buffers[tensors[found[0].inputs[2]].buffer]
    buffer.data = np.frombuffer(np.full(len(buffer.data) // 4, 1 << 28, "<i4").tobytes(), np.uint8)


def pool(parsed):
    code = next(c for c in parsed.operatorCodes if c.builtinCode == schema.BuiltinOperator.RESHAPE)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MEAN


def tanh(parsed):
    found, _ = operators(parsed, "CONV_2D")
    found[0].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (dilate, "operator 1, CONV_2D: expected dilation 1, got 2 x 1"),
        (one_scale, "operator 12, FULLY_CONNECTED: expected a weight scale for each of 64 channels, got 1"),
        (small_output, "operator 0, CONV_2D: expected a scale of input times weights over output"),
        (large_bias, "operator 0, CONV_2D: expected sums below 2^28"),
        (pool, "operator 11, MEAN: not known to the executor"),
        (tanh, "operator 0, CONV_2D: expected a fused activation of NONE, RELU or RELU6, got TANH"),
    ],
)
def test_what_it_cannot_run_is_refused_by_name(edit, said):
    with pytest.raises(EpicnnError) as refused:
        compile_encoder(edited(MODEL, edit))
    assert said in str(refused.value)


def test_depthwise_channels_in_eights():
    def seven(parsed):
        found, tensors = operators(parsed, "DEPTHWISE_CONV_2D")
        for index in (found[0].outputs[0], found[0].inputs[1]):
            tensors[index].shape = [*tensors[index].shape[:3], 28]
        weights = parsed.buffers[tensors[found[0].inputs[1]].buffer]
        weights.data = weights.data[: len(weights.data) * 28 // 32]

    with pytest.raises(EpicnnError, match="operator 2, DEPTHWISE_CONV_2D: expected a multiple of 8 channels"):
        compile_encoder(edited(MODEL, seven))


def test_the_file_is_the_same_each_time_and_vouches_for_itself():
    compiled = compile_encoder(MODEL)
    assert compiled == compile_encoder(MODEL)
    assert compiled[8:40] == hashlib.sha256(compiled[40:]).digest()
    assert compiled[40:48] == hashlib.sha256(MODEL).digest()[:8]
    # Weights and no more than a twentieth besides.
    assert len(compiled) < 1.05 * len(MODEL)


def test_the_arena_is_no_larger_than_three_feature_maps():
    memory = read_memory(compile_encoder(MODEL))
    assert memory.arena <= 16_800 + 2 * 25 * 14 * 32
    assert memory.weights <= 15 * 1024


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.5, (1 << 30, 0)), (0.3, (1_288_490_189, 1)), (0.25 - 2**-42, (1 << 30, 1))],
    ids=["a power of two", "rounded up", "rounded up to the next power"],
)
def test_a_multiplier_is_rounded_as_litert_rounds_it(factor, expected):
    """0.3 is 1288490188.8 / 2^32. A step of the multiplier hardly ever shows in a latent."""
    assert _multiplier("", factor) == expected


@pytest.mark.parametrize("name", ["epic-micro-64", "epic-small-128", "epic-base-256"])
def test_released_bundles_have_it_and_golden_vectors_in_its_arithmetic(name):
    bundle = load_bundle(DEFAULT_MODEL.parent / name / "bundle")
    model = bundle.encoder_path.read_bytes()
    inputs, latents = read_vectors(bundle)
    np.testing.assert_array_equal(latents[2], reference_latents(model, inputs))
    assert (bundle.folder / EPICNN).read_bytes() == compile_encoder(model, inputs[:1])
