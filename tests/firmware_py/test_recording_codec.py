"""Coded recordings: exact, or within the stated misfit; damage is an error, and never another recording."""

import bz2
import hashlib

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_py.protocol.recording_codec import (
    PPM,
    RecordingCodecError,
    decode_part,
    encode_part,
)

WAVES = np.cumsum(np.random.default_rng(0).normal(size=(2, 300, 3)), axis=1).astype(np.float32)
RECEIVERS = (4, 5, 9)
GOLDEN = (
    "82a966666f726d617470657069632d7265636f7264696e672f3165736861706583010403697265636569766572738304"
    "05096773616d706c6573633c663465636f646564633c69326473746570fb3ff0000000000000656f72646572016a6d69"
    "736669745f70706d00667368613235365820c1cf690a555ad32239ae5a66622c76e2922b972e896753f5c86bc6ea1aef"
    "93fd582c425a68393141592653591c13c619000001c00055402000212993d06683e0ca035985dc914e14240704f18640"
)
GOLDEN_SHA256 = "8dfdaa72260c4d7c0e64f55f1016fb3770d9cc3f62d136568d8c695485f80759"


@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.binary(min_size=144, max_size=144),
    st.lists(st.integers(-40_000, 40_000), min_size=18, max_size=18),
    st.sampled_from(["bits", "counts", "negative zeros"]),
)
def test_every_bit_comes_back(kind, bits, counts, what):
    samples = np.frombuffer(bits, kind)[:18]
    samples = (
        np.where(np.isfinite(samples), samples, kind(1.5)) if what == "bits" else np.array(counts, np.float64)
    )
    samples = np.clip(samples, np.finfo(kind).min, np.finfo(kind).max).astype(kind).reshape(1, 6, 3)
    if what == "negative zeros":
        samples[0, 2] = -0.0
    data = encode_part(samples, RECEIVERS)
    decoded = decode_part(data, samples.size)
    assert decoded.samples.dtype == samples.dtype
    assert decoded.samples.tobytes() == samples.tobytes(), "bits, so that -0.0 stays -0.0"
    assert (decoded.receivers, decoded.misfit_ppm) == (RECEIVERS, 0)


def test_the_same_recording_has_the_same_bytes():
    assert encode_part(WAVES, RECEIVERS) == encode_part(WAVES.copy(order="F"), RECEIVERS)


def test_counts_of_a_digitiser_take_two_thirds_of_floats_or_less():
    counts = np.rint(WAVES * 300)
    smooth = encode_part(counts, RECEIVERS)
    assert len(smooth) < len(encode_part(counts * np.float32(1.1), RECEIVERS)) * 2 / 3


@pytest.mark.parametrize("misfit_ppm", [10, 1000, 100_000])
def test_a_lossy_recording_states_its_misfit_and_keeps_within_what_is_allowed(misfit_ppm):
    decoded = decode_part(encode_part(WAVES, RECEIVERS, misfit_ppm), WAVES.size)
    error = np.sqrt(np.mean((decoded.samples.astype(float) - WAVES) ** 2) / np.mean(WAVES.astype(float) ** 2))
    assert 0 < error * PPM <= decoded.misfit_ppm <= misfit_ppm
    assert decoded.samples.dtype == WAVES.dtype


def test_samples_that_do_not_round_like_noise_are_sent_losslessly():
    """Two values far apart: the rounding error of one step is not uniform."""
    constant = np.full((1, 50, 3), 1.37, np.float32)
    decoded = decode_part(encode_part(constant, RECEIVERS, 900_000), constant.size)
    assert decoded.misfit_ppm <= 900_000
    np.testing.assert_allclose(decoded.samples, constant, rtol=0.9)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 3, 3), np.int32),
        np.zeros((3, 3), np.float32),
        np.full((1, 2, 3), np.nan, np.float32),
    ],
)
def test_what_is_no_recording_is_refused(samples):
    with pytest.raises(RecordingCodecError, match="expected finite float16, float32 or float64"):
        encode_part(samples, RECEIVERS)


@settings(max_examples=300)
@given(st.data())
def test_damage_is_an_error(data):
    whole = encode_part(WAVES, RECEIVERS)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_part(bytes(damaged), WAVES.size)
    except RecordingCodecError:
        return
    # A bit of what the samples' hash does not cover: the names of keys, receivers, the stated misfit.
    assert decoded.samples.tobytes() == WAVES.tobytes()


def test_a_part_never_takes_more_memory_than_the_survey_has_samples():
    data = encode_part(np.zeros((5, 4000, 14), np.float32), tuple(range(14)))
    assert len(data) < 1000
    with pytest.raises(RecordingCodecError, match="expected at most 70000 samples"):
        decode_part(data, 70_000)
    header, packed = cbor2.loads(data)
    small = cbor2.dumps([{**header, "shape": [1, 100, 14]}, packed])
    with pytest.raises(RecordingCodecError, match="expected 2800 bytes of samples, got 2801"):
        decode_part(small, 70_000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [float("inf"), 1, 1]},
        {"shape": [-2, -300, 3]},
        {"shape": [2, 0, 3]},
        {"shape": [2.0, 300, 3]},
        {"receivers": [4, 5, float("inf")]},
        {"receivers": [4, 5, -1]},
        {"receivers": [4, 5]},
        {"misfit_ppm": float("inf")},
        {"misfit_ppm": -5},
        {"misfit_ppm": PPM + 1},
        {"order": True},
        {"step": 10**400},
        {"step": 10**5000},
        {"step": "1"},
        {"step": 0.0},
        {"step": float("inf")},
        {"step": float("nan")},
        {"coded": "<f4"},
        {"coded": ["<i2"]},
        {"coded": "x" * 5000},
    ],
    ids=lambda wrong: str(wrong)[:40] if "step" not in wrong else f"step {type(wrong['step']).__name__}",
)
def test_a_header_of_any_value_is_an_error_of_the_codec(wrong):
    header, packed = cbor2.loads(encode_part(np.rint(WAVES * 300), RECEIVERS))
    with pytest.raises(RecordingCodecError, match="no coded part") as raised:
        decode_part(cbor2.dumps([{**header, **wrong}, packed]), WAVES.size)
    assert len(str(raised.value)) < 300


def test_samples_that_are_not_finite_are_an_error():
    header, _ = cbor2.loads(encode_part(WAVES, RECEIVERS))
    nan = np.full(WAVES.shape, np.nan, np.float32)
    header |= {"order": 0, "sha256": hashlib.sha256(nan.tobytes()).digest()}
    planes = np.ascontiguousarray(nan.view(np.uint8).reshape(-1, 4).T)
    with pytest.raises(RecordingCodecError, match="not finite"):
        decode_part(cbor2.dumps([header, bz2.compress(planes.tobytes())]), WAVES.size)


def test_a_version_of_the_format_is_read_for_ever():
    """The bytes of this recording, made on 29 November 2026."""
    whole = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    data = encode_part(whole, RECEIVERS)
    assert hashlib.sha256(data).hexdigest() == GOLDEN_SHA256
    assert decode_part(bytes.fromhex(GOLDEN), 12).samples.tolist() == whole.tolist()
