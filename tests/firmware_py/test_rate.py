"""Latents and their prefixes in 8 and in 4 bits a value."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from firmware_py.protocol.rate import Coding, Rate, RateError, pack, read_coding

LATENTS = st.lists(st.integers(-128, 127), min_size=2, max_size=64).map(
    lambda values: np.array(values, np.int8)
)
PREFIXES = Coding(128, -3, (Rate(32, 8), Rate(32, 4)))


@given(LATENTS)
def test_eight_bits_are_the_latent_itself(latent):
    payload = pack(latent, Rate(len(latent), 8))
    assert payload == latent.tobytes()
    np.testing.assert_array_equal(Coding(len(latent)).unpack(payload), latent)


@given(LATENTS)
def test_four_bits_are_half_the_bytes_and_within_half_a_coarse_step(latent):
    rate, coding = Rate(len(latent), 4), Coding(len(latent))
    payload = pack(latent, rate)
    assert len(payload) == rate.payload_bytes == (len(latent) + 1) // 2
    back = coding.unpack(payload).astype(int)
    assert np.abs(back - latent).max() <= 8
    np.testing.assert_array_equal(coding.unpack(pack(back.astype(np.int8), rate)), back)


@given(LATENTS, st.data())
def test_of_a_prefix_the_rest_is_the_zero_point(latent, data):
    rate = Rate(data.draw(st.integers(1, len(latent) - 1)), data.draw(st.sampled_from([8, 4])))
    zero_point = data.draw(st.integers(-128, 127))
    try:
        coding = Coding(len(latent), zero_point, (rate,))
    except RateError:
        assume(False)
    payload = pack(latent, rate)
    assert len(payload) == rate.payload_bytes
    back = coding.unpack(payload).astype(int)
    assert np.abs(back[: rate.values] - latent[: rate.values]).max() <= (0 if rate.bits == 8 else 8)
    assert (back[rate.values :] == zero_point).all()
    assert coding.rate(len(payload)) == rate


@given(st.binary(max_size=140))
def test_every_length_means_one_thing_or_nothing(payload):
    if len(payload) in (128, 64, 32, 16):
        assert PREFIXES.is_latent(payload)
        latent = PREFIXES.unpack(payload)
        assert pack(latent, PREFIXES.rate(len(payload))) == payload
    else:
        assert not PREFIXES.is_latent(payload)
        with pytest.raises(RateError, match=f"of 128, 64, 32 or 16 bytes, got {len(payload)}"):
            PREFIXES.unpack(payload)


def test_the_order_of_the_halves():
    assert pack(np.array([0x12, -1, 0x7F], np.int8), Rate(3, 4)) == bytes([0x1F, 0x70])
    assert Coding(3).unpack(bytes([0x1F, 0x70])).tolist() == [0x18, -8, 0x78]


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 127, 129])
def test_a_model_without_prefixes_takes_the_two_lengths_that_it_always_took(size):
    """What devices send that know of no prefix: 128 bytes, or 64 of 4 bits a value."""
    assert read_coding({}, 128, 0).rates == (Rate(128, 8), Rate(128, 4))
    with pytest.raises(RateError, match=f"expected a latent of 128 or 64 bytes, got {size}"):
        read_coding({}, 128, 0).unpack(bytes(size))


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        ([[64, 8]], r"a length of its own, got \[128, 64, 64\]"),
        ([[32, 8], [64, 4]], "a length of its own"),
        ([[128, 8]], "a length of its own"),
        ([[200, 8]], "expected 1 to 127 values of 8 or 4 bits, got 200 of 8"),
        ([[0, 8]], "got 0 of 8"),
        ([[32, 2]], "got 32 of 2"),
        ([[32]], "expected pairs of values and bits"),
        ([[32, 8, 1]], "expected pairs of values and bits"),
        ([["32", 8]], "expected pairs of values and bits"),
        ([[True, 8]], "expected pairs of values and bits"),
        (32, "expected pairs of values and bits"),
    ],
)
def test_prefixes_that_cannot_be(prefixes, said):
    with pytest.raises(RateError, match=said):
        read_coding({"prefixes": prefixes}, 128, 0)


def test_prefixes_of_a_manifest():
    assert read_coding({"prefixes": [[32, 8], [32, 4]]}, 128, -3) == PREFIXES
