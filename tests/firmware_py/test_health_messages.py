"""HELLO and HEALTH payloads: there and back, and whatever else may come."""

from dataclasses import fields

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import (
    MAX_BYTES,
    Health,
    Hello,
    decode_health,
    decode_newest_boot,
    decode_ranges,
    decode_setting,
    encode_health,
    encode_setting,
)
from firmware_py.protocol.packet import PacketError

numbers = st.integers(0, (1 << 53) - 1)
signed = st.integers(-(1 << 53) + 1, (1 << 53) - 1)
intervals = st.integers(1, 86_400)
text = st.text(max_size=16)
hellos = st.builds(Hello, text, text, intervals, numbers, numbers, update_version=st.none() | numbers)
healths = st.builds(
    Health,
    intervals,
    *[numbers] * 5,
    **{
        name: st.none() | (signed if name in ("temperature_mc", "clock_offset_us") else numbers)
        for name in [field.name for field in fields(Health)][6:]
        if name not in ("update_state", "rejection", "last_error")
    },
    update_state=st.none() | text,
    rejection=st.none() | text,
    last_error=st.none() | text,
)
messages = hellos | healths

LONG_RUNNING = Health(
    60, 40_000_000, 10_000, 1_000_000, 3, 5_000_000, 1_764_000_000, 4_999_990, 1_764_000_000, 4_990_001,
    2_500, 71_250, 58_000, 3_400, -1_500_000, 31_000, 17, "downloading", 128,
)  # fmt: skip


@given(messages)
def test_there_and_back(message):
    assert decode_health(encode_health(message), type(message)) == message


@settings(max_examples=500)
@given(
    st.one_of(st.binary(max_size=64), messages.map(encode_health)),
    st.sampled_from([Hello, Health]),
    st.data(),
)
def test_whatever_comes_is_a_message_or_an_error(payload, kind, data):
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode_health(bytes(changed), kind)
    except PacketError:
        return
    assert decode_health(encode_health(message), kind) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"\x81" * (MAX_BYTES - 1) + b"\x00",
        bytes(MAX_BYTES + 1),
        b"",
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
        cbor2.dumps({"interval_s": 60}),
        cbor2.dumps([]),
        cbor2.dumps([60, 1, 1, 1, 1]),
        cbor2.dumps([0, 1, 1, 1, 1, 1]),
        cbor2.dumps([86_401, 1, 1, 1, 1, 1]),
        cbor2.dumps([60, True, 1, 1, 1, 1]),
        cbor2.dumps([60, -1, 1, 1, 1, 1]),
        cbor2.dumps([60, 1.5, 1, 1, 1, 1]),
        cbor2.dumps([60, 1 << 53, 1, 1, 1, 1]),
        cbor2.dumps([60, None, 1, 1, 1, 1]),
        cbor2.dumps([60, 1, 1, 1, 1, 1, *[None] * 11, "x" * 65]),
        cbor2.dumps([60, 1, 1, 1, 1, 1, *[None] * 11, b"idle"]),
    ],
)
def test_what_is_out_of_bounds_is_refused(payload):
    with pytest.raises(PacketError, match="^health: "):
        decode_health(payload, Health)


def test_last_fields_may_be_absent_and_those_of_a_newer_device_are_left_out():
    short = Health(60, 1, 2, 3, 4, 5)
    assert decode_health(cbor2.dumps([60, 1, 2, 3, 4, 5]), Health) == short
    assert decode_health(cbor2.dumps([*vars(short).values(), "mood", {"good": [1]}]), Health) == short


def test_long_text_is_cut_to_whole_characters():
    hello = decode_health(encode_health(Hello("0.1.0", "é" * 100, 60, 1, 0)), Hello)
    assert hello.board == "é" * 32


def test_the_reason_of_a_rejection_is_longer_than_a_name():
    reason = "expected a gather (5, 1000, 70) or this device's part (5, 1000, 14), got (5, 1000, 36)"
    health = Health(60, 1, 2, 3, 4, 5, rejected=7, rejection=reason)
    assert decode_health(encode_health(health), Health) == health


def test_health_is_cheap_on_a_slow_line():
    """Header, MAC and framing included; a latent of 128 values is about 180 bytes."""
    assert packet.HEADER_BYTES + len(encode_health(LONG_RUNNING)) + 8 + 3 < 150


@given(st.integers(0, 65_535))
def test_a_setting_there_and_back_whatever_a_newer_centre_appends(latent_bytes):
    payload = encode_setting(latent_bytes)
    assert decode_setting(payload) == decode_setting(payload + b"more") == latent_bytes


def test_the_ranges_that_a_centre_asks_for_there_and_back():
    ranges = [(1, 2, 3), (0xFFFFFFFF, 1, 0xFFFFFFFF)]
    payload = encode_setting(64, ranges=ranges)
    assert decode_ranges(payload) == decode_ranges(payload + b"more") == ranges
    assert (decode_setting(payload), decode_newest_boot(payload)) == (64, 0)
    assert (
        decode_ranges(encode_setting(64)) == decode_ranges(encode_setting(64, 9)) == decode_ranges(b"") == []
    )
    assert decode_newest_boot(encode_setting(64, 9, ranges)) == 9


@pytest.mark.parametrize(
    "ranges, message",
    [
        ([(1, 0, 2)], "got 0 to 2 of boot 1"),
        ([(1, 3, 2)], "got 3 to 2"),
        ([(1, 1, 1)] * 17, "at most 16 ranges"),
    ],
)
def test_ranges_without_sense_are_refused(ranges, message):
    with pytest.raises(PacketError, match=message):
        decode_ranges(encode_setting(0, ranges=ranges))
    with pytest.raises(PacketError, match="got 1 in 11 bytes"):
        decode_ranges(encode_setting(0, ranges=[(1, 1, 1)])[:-1])


def test_an_older_centre_sets_nothing_and_half_a_setting_is_none():
    assert decode_setting(b"") is None
    with pytest.raises(PacketError, match="setting: expected at least 2 bytes, got 1"):
        decode_setting(b"\x20")
