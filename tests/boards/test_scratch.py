"""Scratch buffers, against the libraries' formulas worked out by hand for one layer each."""

import pytest

from boards.fit.graph import Graph, Step, Tensor, read_graph
from boards.fit.scratch import KERNELS, scratch_bytes
from testbed.run import DEFAULT_MODEL

ZOO = DEFAULT_MODEL.parent


def tensor(*shape):
    return Tensor("t", shape, "INT8", 0.1, 0, False, False)


# 25 × 14 × 40 in, 64 filters of 3 × 3, stride 2 and 2, padded to the same: 13 × 7 out.
CONV = Step("CONV_2D", (tensor(1, 25, 14, 40), tensor(64, 3, 3, 40)), (tensor(1, 13, 7, 64),), (2, 2))
DEPTHWISE = Step("DEPTHWISE_CONV_2D", (tensor(1, 25, 14, 40), tensor(1, 3, 3, 40)), (tensor(1, 25, 14, 40),))
DENSE = Step("FULLY_CONNECTED", (tensor(1, 672), tensor(128, 672)), (tensor(1, 128),))


@pytest.mark.parametrize(
    ("kernels", "step", "expected"),
    [
        # Two int16 columns of 3·3·40 = 360 values are 1,440 B; four int8 ones of 368 are 1,472, and 64 sums 256.
        ("cmsis-nn", CONV, 1472 + 256),
        ("cmsis-nn", DENSE, 4 * 128),
        # Filter channels of 40 padded to 48, filter rows of 120 to 128; SAME puts a row before 25 rows and no column
        # before 14, so 27 × 14; from the output's extent 28 × 16; sums and margin.
        (
            "esp-nn",
            CONV,
            3 * 3 * 48 * 64 + 128 * 3 * 64 + 27 * 14 * 40 + 28 * 16 * 40 + 4 * 64 + 64,
        ),
        # 40 channels are no multiple of 16: 48 in filter, padded input (27 × 16 by one on each side) and output.
        ("esp-nn", DEPTHWISE, (9 + 27 * 16 + 25 * 14) * 48 + 64),
        ("esp-nn", DENSE, 0),
        ("reference", CONV, 0),
    ],
)
def test_one_operator(kernels, step, expected):
    assert KERNELS[kernels](step) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("epic-small-128", 111_424), ("epic-micro-64", 69_776), ("epic-base-256", 250_080)]
)
def test_esp_nn_asks_for_what_the_library_itself_computes(name, expected):
    """The figures are the library's, compiled and asked for every operator of the encoder."""
    model = (ZOO / name / "bundle" / "encoder.tflite").read_bytes()
    assert scratch_bytes(read_graph(model), "esp-nn") == expected


def test_of_several_operators_the_largest_counts():
    steps = (DENSE, CONV, DENSE)
    graph = Graph(steps, (), (tensor(1),), (tensor(1),), 1000)
    assert scratch_bytes(graph, "cmsis-nn") == KERNELS["cmsis-nn"](CONV)
