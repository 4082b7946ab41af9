"""Stored maps are small, and within half a metre a second of what was decoded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from central.storage.map_codec import MapCodecError, decode_map, encode_map

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-30_000, 30_000, width=32)))
def test_a_map_comes_back_within_half_a_metre_a_second(values):
    back = decode_map(encode_map(values), values.shape)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=0.5)
    np.testing.assert_array_equal(decode_map(encode_map(back), values.shape), back)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
def test_values_that_are_no_velocities_are_stored_exactly_or_rounded(values):
    back = decode_map(encode_map(values), values.shape)
    np.testing.assert_allclose(back, values, atol=0.5)


def test_a_map_with_texture_takes_a_quarter_of_its_float32():
    rows = np.linspace(1500, 4500, 70)[:, None] + np.zeros(70)
    textured = rows + np.random.default_rng(1).normal(0, 10, (70, 70))
    assert len(encode_map(textured)) < 70 * 70 * 4 / 4


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(blob):
    try:
        decode_map(blob, (5, 7))
    except MapCodecError:
        return
    assert blob[:1] in b"\x01\x02"


def test_a_bomb_is_not_inflated():
    with pytest.raises(MapCodecError):
        decode_map(encode_map(np.zeros((3000, 3000))), (2, 2))
