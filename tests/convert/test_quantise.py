import numpy as np
import pytest
from quantising import quantise_here

from boards.fit.graph import GraphError, check_graph, read_graph
from convert.errors import ConversionError, QuantisationError
from convert.quantise import quantise, rebuild_batch_one

keras = pytest.importorskip("keras", reason="conversion needs the train extra")

pytestmark = pytest.mark.slow


def parts(n=8, seed=3):
    return np.random.default_rng(seed).normal(scale=0.3, size=(n, 20, 10, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return tiny_encoder()


@pytest.fixture(scope="module")
def model(encoder):
    return quantise(encoder, parts())


def test_the_model_is_int8_static_and_of_allowed_operators(model):
    graph = read_graph(model)
    check_graph(graph)
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == "INT8"
    assert graph.inputs[0].shape == (1, 20, 10, 2)
    assert graph.outputs[0].shape == (1, 16)
    expected = {"ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "RESHAPE", "FULLY_CONNECTED"}
    assert set(graph.operators) == expected


def test_the_same_network_and_data_give_the_same_bytes(encoder, model):
    """In a process of its own, and in that of the tests, where most of them convert."""
    assert quantise_here(encoder, parts()) == model


def test_the_rebuilt_network_computes_the_same(encoder):
    x = parts(1)
    rebuilt = rebuild_batch_one(encoder)
    assert rebuilt.input_shape[0] == 1
    np.testing.assert_allclose(np.asarray(rebuilt(x)), np.asarray(encoder(x)), rtol=1e-6)


def test_an_operator_outside_the_list_is_named():
    inputs = keras.Input((20, 10, 2))
    outputs = keras.layers.Flatten()(keras.activations.tanh(keras.layers.Conv2D(4, 3, strides=3)(inputs)))
    model = quantise_here(keras.Model(inputs, outputs), parts())
    with pytest.raises(
        GraphError, match="operators TANH are not in the device runtime; it has ADD, AVERAGE_POOL_2D"
    ):
        check_graph(read_graph(model))


def test_a_layer_without_an_int8_form_is_refused():
    inputs = keras.Input((20, 10, 2))
    outputs = keras.layers.Flatten()(keras.ops.erf(inputs))
    with pytest.raises(QuantisationError, match="converter refused the encoder: .*") as caught:
        quantise(keras.Model(inputs, outputs), parts())
    assert "\n" not in str(caught.value)


def test_a_float_model_is_refused(encoder):
    import tensorflow as tf

    from boards.quiet import hold_output

    with hold_output():
        model = tf.lite.TFLiteConverter.from_keras_model(rebuild_batch_one(encoder)).convert()
    with pytest.raises(GraphError, match="expected int8 tensors throughout, got FLOAT32"):
        check_graph(read_graph(model))


@pytest.mark.parametrize(
    ("representative", "said"),
    [
        (
            np.zeros((4, 20, 9, 2), np.float32),
            r"expected \(n, 20, 10, 2\) as the encoder's input, got \(4, 20, 9, 2\)",
        ),
        (np.zeros((0, 20, 10, 2), np.float32), "got \\(0, 20, 10, 2\\)"),
        (np.full((4, 20, 10, 2), np.nan, np.float32), "expected finite values"),
    ],
)
def test_a_representative_set_that_does_not_fit_is_refused(encoder, representative, said):
    with pytest.raises(ConversionError, match=said):
        quantise(encoder, representative)


def test_weights_that_are_not_numbers_are_refused(tiny_encoder):
    broken = tiny_encoder()
    weights = broken.get_weights()
    weights[0][:] = np.nan
    broken.set_weights(weights)
    with pytest.raises(ConversionError, match="encoder weight .*: expected finite values"):
        quantise(broken, parts())


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x00" * 64, b"not a model at all"])
def test_another_kind_of_file_is_refused(content):
    with pytest.raises(GraphError, match="expected a TFLite model"):
        read_graph(content)
