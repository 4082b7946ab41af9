"""Scratch buffers, against the libraries' formulas worked out by hand for one layer each."""

import pytest

from boards.fit.graph import Graph, Step, Tensor
from boards.fit.scratch import KERNELS, scratch_bytes


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
        # Filter rows of 40 padded to 48: 3·3·48·64; the input padded to 27 × 15; offsets and alignment.
        ("esp-nn", CONV, 3 * 3 * 48 * 64 + 27 * 15 * 40 + 24 * 40 + 8 * 64 + 64),
        ("esp-nn", DEPTHWISE, 2 * (3 * 3 * 48 + 27 * 16 * 40) + 64),
        ("esp-nn", DENSE, 0),
        ("reference", CONV, 0),
    ],
)
def test_one_operator(kernels, step, expected):
    assert KERNELS[kernels](step) == expected


def test_of_several_operators_the_largest_counts():
    steps = (DENSE, CONV, DENSE)
    graph = Graph(steps, (), (tensor(1),), (tensor(1),), 1000)
    assert scratch_bytes(graph, "cmsis-nn") == KERNELS["cmsis-nn"](CONV)
