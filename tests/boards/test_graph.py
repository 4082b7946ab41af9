"""A .tflite that was cut or damaged on its way."""

import random

import pytest
from tiny import ENCODER

from boards.fit.graph import GraphError, read_graph


def test_a_whole_model_is_read():
    assert read_graph(ENCODER).outputs[0].dtype == "INT8"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_cut_model_is_no_model(share):
    with pytest.raises(GraphError, match="not a whole TFLite model .*; copy it again, or convert again"):
        read_graph(ENCODER[: max(16, int(share * len(ENCODER)))])


def test_no_damage_gets_past_as_another_error():
    draw = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(ENCODER)
        for _ in range(20):
            damaged[draw.randrange(8, len(damaged))] = draw.randrange(256)
        try:
            read_graph(bytes(damaged))
        except GraphError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
