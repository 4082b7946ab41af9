"""Latents in 8 and in 4 bits a value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_py.rate import RateError, pack, payload_bytes, unpack

LATENTS = st.lists(st.integers(-128, 127), min_size=2, max_size=64).map(
    lambda values: np.array(values, np.int8)
)


@given(LATENTS)
def test_eight_bits_are_the_latent_itself(latent):
    assert pack(latent, 8) == latent.tobytes()
    np.testing.assert_array_equal(unpack(pack(latent, 8), len(latent)), latent)


@given(LATENTS)
def test_four_bits_are_half_the_bytes_and_within_half_a_coarse_step(latent):
    payload = pack(latent, 4)
    assert len(payload) == payload_bytes(len(latent), 4) == (len(latent) + 1) // 2
    back = unpack(payload, len(latent)).astype(int)
    assert np.abs(back - latent).max() <= 8
    np.testing.assert_array_equal(unpack(pack(back.astype(np.int8), 4), len(latent)), back)


def test_the_order_of_the_halves():
    assert pack(np.array([0x12, -1, 0x7F], np.int8), 4) == bytes([0x1F, 0x70])
    assert unpack(bytes([0x1F, 0x70]), 3).tolist() == [0x18, -8, 0x78]


@pytest.mark.parametrize("size", [0, 1, 63, 65, 127, 129])
def test_what_is_of_no_known_length_is_refused(size):
    with pytest.raises(RateError, match=f"expected a latent of 128 or 64 bytes, got {size}"):
        unpack(bytes(size), 128)
