"""What a device does to its samples before encoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_py.inference.companding import (
    Companding,
    GatherError,
    compand,
    dequantise,
    quantise,
    thin_samples,
)

COMPANDING = Companding(k=100.0, c=9.0, thin=10)


def test_shape_and_padding():
    part = np.ones((5, 1003, 12), np.float32)
    out = compand(part, COMPANDING, 14)
    assert out.shape == (100, 14, 5)
    np.testing.assert_allclose(out[:, :12], np.arcsinh(100.0) / 9.0, rtol=1e-6)
    assert not out[:, 12:].any()


def test_thinning_is_the_mean_of_each_block():
    samples = np.arange(25.0).reshape(1, 25, 1)
    np.testing.assert_allclose(thin_samples(samples, 10, axis=1)[0, :, 0], [4.5, 14.5])


def test_thinning_keeps_a_seismic_wavelet():
    """At 15 Hz and 1 ms, the mean over 10 samples takes less than 0.4 dB."""
    t = np.arange(1000) * 1e-3
    tone = np.sin(2 * np.pi * 15 * t)[None, :, None]
    loss_db = 20 * np.log10(thin_samples(tone, 10, axis=1).std() / tone.std())
    assert -0.4 < loss_db < 0


def test_weak_reflections_survive_int8_beside_the_direct_wave():
    """60 dB below a direct wave of 50: erased by linear int8, kept by the companding."""
    weak = 0.05 * np.sin(np.linspace(0, 20, 1000))
    part = np.zeros((1, 1000, 1), np.float32)
    part[0, :, 0] = weak
    part[0, 0:10, 0] = 50.0
    once = compand(part, COMPANDING, 1)
    q = quantise(once, 1 / 127, 0)
    back = np.sinh(dequantise(q, 1 / 127, 0)[1:, 0, 0] * COMPANDING.c) / COMPANDING.k
    wanted = thin_samples(part, 10, axis=1)[0, 1:, 0]
    assert np.abs(back - wanted).max() < 0.05 * 0.05
    assert not np.rint(wanted / (50 / 127)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(bad):
    part = np.zeros((5, 20, 3))
    part[1, 2, 2] = bad
    with pytest.raises(GatherError, match="got 1 NaN or infinite"):
        compand(part, COMPANDING, 14)


def test_samples_beyond_single_precision():
    with pytest.raises(GatherError, match="got 1 NaN or infinite"):
        compand(np.array([[[1e300], [1.0]]]), Companding(1.0, 1.0, 1), 1)


@pytest.mark.parametrize("shape", [(20, 3), (1, 5, 20, 3), (5, 20, 15)])
def test_wrong_shapes(shape):
    with pytest.raises(GatherError, match="expected"):
        compand(np.zeros(shape), COMPANDING, 14)


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 10), st.integers(-128, 127))
def test_quantisation_rounds_and_saturates(value, scale, zero_point):
    q = int(quantise(np.array(value), scale, zero_point))
    exact = value / scale + zero_point
    if -128 <= exact <= 127:
        assert abs(q - exact) <= 0.5 + 1e-6
        assert dequantise(np.array(q), scale, zero_point) == pytest.approx(value, abs=scale * 0.51 + 1e-5)
    else:
        assert q == (-128 if exact < 0 else 127)


def test_halves_round_to_even():
    assert quantise(np.array([0.5, 1.5, 2.5, -0.5]), 1.0, 0).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_impossible_companding(values):
    with pytest.raises(ValueError, match="expected k > 0, c > 0, thin >= 1"):
        Companding(*values)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40), st.floats(0.1, 1000))
def test_companding_keeps_the_order_of_samples(samples, k):
    part = np.sort(np.array(samples, np.float32))[None, :, None]
    assert (np.diff(compand(part, Companding(k, 5.0, 1), 1)[:, 0, 0]) >= 0).all()


def test_samples_that_single_precision_cannot_add_up():
    part = np.full((1, 20, 1), 3e38, np.float32)
    with pytest.raises(GatherError, match=r"float32 can add up, got up to 3e\+38"):
        compand(part, COMPANDING, 1)
