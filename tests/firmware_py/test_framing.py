"""Framing on byte streams: against the reference COBS, through garbage, within bounds."""

import hmac

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac, SealError, UnauthenticError
from firmware_py.protocol.framing import (
    Deframer,
    FramingError,
    cobs_decode,
    cobs_encode,
    decode_frame,
    encode_frame,
)

SECRET = bytes(range(32))
SEALS = [Crc(), Mac(SECRET, UPLINK)]

# Runs of non-zeros around 254 are where COBS is hard.
blocks = st.one_of(
    st.binary(max_size=600),
    st.lists(st.sampled_from([b"\0", b"\1" * 253, b"\1" * 254, b"\1" * 255]), max_size=4).map(b"".join),
)
bodies = blocks.filter(bool)


@given(blocks)
def test_cobs_is_the_reference(data):
    assert cobs_encode(data) == cobs.encode(data)
    assert cobs_decode(cobs_encode(data)) == data
    assert 0 not in cobs_encode(data)


@given(st.binary(min_size=1, max_size=300).filter(lambda data: 0 not in data))
def test_cobs_decoding_accepts_what_the_reference_accepts(data):
    try:
        expected = cobs.decode(data)
    except cobs.DecodeError:
        with pytest.raises(FramingError):
            cobs_decode(data)
    else:
        assert cobs_decode(data) == expected


@given(st.lists(bodies, max_size=6), st.data())
def test_records_come_out_however_the_stream_is_cut(sent, data):
    stream = b"".join(encode_frame(body) for body in sent)
    deframer = Deframer()
    out = []
    while stream:
        n = data.draw(st.integers(1, len(stream)))
        out += deframer.feed(stream[:n])
        stream = stream[n:]
    assert out == sent
    assert deframer.damaged_frames == 0


@given(st.binary(max_size=200), bodies)
def test_back_in_step_after_garbage(garbage, body):
    deframer = Deframer()
    deframer.feed(garbage + b"\0")
    assert deframer.feed(encode_frame(body)) == [body]


@pytest.mark.parametrize("seal", SEALS, ids=["crc", "mac"])
@given(body=bodies, data=st.data())
def test_a_flipped_bit_is_never_accepted_as_the_record(seal, body, data):
    frame = bytearray(encode_frame(body, seal)[:-1])
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    deframer = Deframer(seal.open)
    got = deframer.feed(bytes(frame) + b"\0")
    assert got == []


@given(st.binary(max_size=300))
def test_the_mac_is_hmac_sha256_over_direction_and_record(body):
    expected = hmac.digest(SECRET, UPLINK + body, "sha256")[:8]
    assert Mac(SECRET, UPLINK).close(body) == body + expected


@pytest.mark.parametrize("place", range(Mac.size))
def test_every_byte_of_the_mac_counts(place):
    seal = Mac(SECRET, UPLINK)
    sealed = bytearray(seal.close(b"a record"))
    sealed[place - Mac.size] ^= 1
    with pytest.raises(UnauthenticError):
        seal.open(bytes(sealed))


@given(st.binary(max_size=200))
def test_a_record_does_not_pass_for_another_direction_or_device(body):
    sealed = Mac(SECRET, UPLINK).close(body)
    for other in (Mac(SECRET, DOWNLINK), Mac(bytes(32), UPLINK)):
        deframer = Deframer(other.open)
        assert deframer.feed(cobs_encode(sealed) + b"\0") == []
        assert deframer.unauthentic_frames == 1


def test_a_record_and_its_acknowledgement_fit_20_ms_of_a_serial_line():
    latent = packet.Record(packet.LATENT, 4, 1, 2**32 - 1, 2**32 - 1, payload=bytes(range(128)))
    there = encode_frame(packet.encode_record(latent), Mac(SECRET, UPLINK))
    back = encode_frame(packet.encode_record(packet.acknowledge(latent)), Mac(SECRET, DOWNLINK))
    # 8N1 sends ten bits for a byte.
    assert 10 * (len(there) + len(back)) / 115_200 <= 0.020


def test_an_endless_frame_is_forgotten_and_counted():
    deframer = Deframer(max_frame_bytes=100)
    for _ in range(1000):
        assert deframer.feed(b"\1" * 50) == []
        assert len(deframer._buffer) <= 100
    assert deframer.feed(b"\0" + encode_frame(b"fine")) == [b"fine"]
    assert deframer.damaged_frames == 1


def test_what_ends_an_overlong_frame_is_no_record_and_the_next_frame_is():
    """Also where the stream is cut so that the end of it would be a frame of its own."""
    deframer = Deframer(max_frame_bytes=100)
    assert deframer.feed(b"\1" * 101) == []
    assert deframer.feed(encode_frame(b"its end")) == []
    assert deframer.damaged_frames == 1
    assert deframer.feed(encode_frame(b"the next")) == [b"the next"]


def test_a_frame_too_short_for_its_seal():
    with pytest.raises(SealError):
        decode_frame(cobs_encode(b"ab"))
    with pytest.raises(UnauthenticError):
        decode_frame(cobs_encode(b"ab"), Mac(SECRET, UPLINK).open)


def test_a_line_stuck_on_one_byte_makes_no_records():
    """Five ones are the frame of four zeros, which are nothing and its CRC."""
    deframer = Deframer()
    assert deframer.feed(b"\1\1\1\1\1\0") == []
    assert deframer.damaged_frames == 1
