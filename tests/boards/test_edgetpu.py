"""Each documented constraint of the Edge TPU, on graphs that break it alone."""

import pytest

from boards.fit.edgetpu import broken_constraints
from boards.fit.graph import Graph, Step, Tensor


def tensor(*shape, name="t", constant=False, values=None):
    return Tensor(name, shape, "INT8", 0.1, 0, constant, False, values)


def graph(*steps):
    tensors = tuple(t for step in steps for t in (*step.inputs, *step.outputs))
    return Graph(steps, tensors, (steps[0].inputs[0],), (steps[-1].outputs[0],), 1000)


IN, MAP, OUT = tensor(1, 100, 14, 5, name="in"), tensor(1, 50, 14, 8, name="map"), tensor(1, 64, name="out")
WEIGHTS = tensor(8, 3, 3, 5, name="weights", constant=True)
BIAS = tensor(8, name="bias", constant=True)
CONV = Step("CONV_2D", (IN, WEIGHTS, BIAS), (MAP,), (2, 1), activation="RELU")
DENSE = Step("FULLY_CONNECTED", (tensor(1, 5600), tensor(64, 5600, constant=True)), (OUT,))


def test_an_encoder_like_ours_breaks_none():
    assert broken_constraints(graph(CONV, DENSE)) == ()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            Step("RESHAPE", (IN,), (tensor(2, 50, 14, 5, name="pair"),)),
            "'pair' has the shape [2, 50, 14, 5], only the three innermost sizes may be above 1",
        ),
        (
            Step("CONV_2D", (IN, WEIGHTS, BIAS), (MAP,), dilation=(2, 1)),
            "CONV_2D: dilation (2, 1), must be the same along both axes",
        ),
        (
            Step("DEPTHWISE_CONV_2D", (IN, WEIGHTS, BIAS), (MAP,), dilation=(2, 2)),
            "DEPTHWISE_CONV_2D: dilation (2, 2), a depthwise convolution must have none",
        ),
        (
            Step("CONV_2D", (IN, WEIGHTS, tensor(8, name="sums")), (MAP,)),
            "CONV_2D: 'sums' is computed, weights and biases must be constants",
        ),
        (
            Step("MAX_POOL_2D", (IN,), (MAP,), (2, 2), activation="RELU"),
            "MAX_POOL_2D: RELU is fused into it, a pool must have no activation",
        ),
        (
            Step("FULLY_CONNECTED", (tensor(25, 224), tensor(8, 224, constant=True)), (tensor(25, 8),)),
            "FULLY_CONNECTED: output [25, 8], must have one dimension",
        ),
        (
            Step("MEAN", (IN, tensor(1, constant=True, values=(3,))), (tensor(1, 100, 14),)),
            "MEAN: reduces along (3,), may do so along time and receivers only",
        ),
    ],
)
def test_a_broken_constraint_is_named(step, said):
    assert said in broken_constraints(graph(step))


@pytest.mark.parametrize("axes", [(1, 2), (-3, -2), (1,)])
def test_a_mean_along_time_and_receivers_is_allowed(axes):
    mean = Step("MEAN", (IN, tensor(len(axes), constant=True, values=axes)), (tensor(1, 5),))
    assert broken_constraints(graph(mean)) == ()
