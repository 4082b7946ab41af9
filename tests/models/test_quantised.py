"""Training with int8 rounding: it rounds as the converter does, and leaves a plain float encoder behind."""

import keras
import numpy as np
import pytest
from quantising import quantise_here

import models.networks.quantised
from firmware_py.inference import companding as compand
from models.errors import TrainingError
from models.networks.encoder import EncoderConfig, Stage, build_encoder
from models.networks.quantised import QuantisedEncoder, rounded, rounded_kernel

pytestmark = pytest.mark.slow

PARTS = np.random.default_rng(0).normal(scale=0.3, size=(64, 20, 7, 2)).astype(np.float32)
STAGES = (Stage(8, (3, 3), (2, 1), residuals=1), Stage(12, (3, 3), (2, 2), residuals=1))


@pytest.fixture(scope="module")
def encoder():
    """Normalisation and residual blocks as training leaves them, neither the identity."""
    keras.utils.set_random_seed(0)
    built = build_encoder(EncoderConfig(20, 7, 2, 16, STAGES, bottleneck=4))
    rng = np.random.default_rng(1)
    for layer in built.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            channels = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.5, 1.5, channels))
            layer.beta.assign(rng.normal(scale=0.2, size=channels))
            layer.moving_mean.assign(rng.normal(scale=0.1, size=channels))
            layer.moving_variance.assign(rng.uniform(0.05, 0.5, channels))
    return built


@pytest.fixture(scope="module")
def converted(encoder):
    """``(step, zero point, values)`` of every tensor that the int8 model makes of ``PARTS[:1]``, in order."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=quantise_here(encoder, PARTS),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], compand.quantise(PARTS[:1], *given["quantization"]))
    interpreter.invoke()
    steps = [operator for operator in interpreter._get_ops_details() if operator["op_name"] != "RESHAPE"]
    found = []
    for index in [given["index"], *(operator["outputs"][0] for operator in steps)]:
        about = next(tensor for tensor in interpreter.get_tensor_details() if tensor["index"] == index)
        found.append((*about["quantization"], interpreter.get_tensor(index)))
    return found


def test_it_rounds_the_tensors_that_the_converter_rounds(encoder, converted, monkeypatch):
    """In the converter's own steps, value for value but where a tie or an integer multiplier falls otherwise."""
    made = []

    def in_its_steps(values):
        step, zero, _ = converted[len(made)]
        made.append(np.clip(np.rint(np.asarray(values) / step) + zero, -128, 127))
        return (made[-1] - zero) * np.float32(step)

    monkeypatch.setattr(models.networks.quantised, "rounded", in_its_steps)
    QuantisedEncoder(encoder)(PARTS[:1])
    assert len(made) == len(converted)
    for mine, (_, _, theirs) in zip(made, converted, strict=True):
        apart = np.abs(mine.ravel() - theirs.ravel())
        assert np.mean(apart > 0) < 0.25
        assert apart.max() <= 2


def test_its_steps_are_about_those_of_the_converter(encoder, converted, monkeypatch):
    steps = []

    def watched(values):
        result = rounded(values)
        steps.append(np.diff(np.unique(np.asarray(result))).min())
        return result

    monkeypatch.setattr(models.networks.quantised, "rounded", watched)
    QuantisedEncoder(encoder)(PARTS)
    # The converter gives the branch of a sum the range of the sum as well where that is greater.
    np.testing.assert_allclose(steps, [step for step, _, _ in converted], rtol=0.12)


def test_values_take_256_steps_of_their_range_and_zero_stays_zero():
    values = np.linspace(-0.6, 1.95, 10_001, dtype=np.float32)
    result = np.asarray(rounded(values))
    assert len(np.unique(result)) == 256
    assert np.abs(result - values).max() <= 2.55 / 255 / 2 * 1.01
    assert np.asarray(rounded(np.array([0.0, 5.0, 1.7], np.float32)))[0] == 0.0
    assert (np.asarray(rounded(np.zeros(3, np.float32))) == 0.0).all()


def test_each_channel_of_a_kernel_has_its_own_step():
    kernel = np.stack([np.linspace(-1, 1, 400), np.linspace(-0.01, 0.01, 400)], axis=-1).astype(np.float32)
    result = np.asarray(rounded_kernel(kernel, 1))
    assert [len(np.unique(channel)) for channel in result.T] == [255, 255]


def test_gradients_pass_the_rounding_and_reach_every_weight(encoder):
    tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow's tape")
    quantised = QuantisedEncoder(encoder)
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(keras.ops.square(quantised(PARTS)))
    gradients = tape.gradient(loss, quantised.trainable_variables)
    assert len(gradients) == len(encoder.trainable_variables)
    assert all(np.abs(np.asarray(gradient)).max() > 0 for gradient in gradients)
    # Those of the float encoder but for what the rounding moved.
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(keras.ops.square(encoder(PARTS, training=False)))
    for mine, its in zip(gradients, tape.gradient(loss, encoder.trainable_variables), strict=True):
        assert np.linalg.norm(mine - its) < 0.2 * np.linalg.norm(its)


def test_a_layer_without_a_known_int8_form_is_named():
    inputs = keras.Input((20, 7, 2))
    tanh = keras.Model(inputs, keras.layers.Activation("tanh", name="squash")(inputs))
    with pytest.raises(TrainingError, match="squash is a Activation, whose int8 form is not known"):
        QuantisedEncoder(tanh)(PARTS)
