"""UPDATE payloads: there and back, and whatever else may come."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_py.protocol.packet import PacketError
from firmware_py.protocol.update_messages import (
    MAX_CHUNK_BYTES,
    Chunk,
    ChunkRequest,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)

numbers = st.integers(0, (1 << 32) - 1)
sha256 = st.binary(min_size=32, max_size=32)
messages = st.one_of(
    st.builds(Offer, numbers, sha256, numbers, st.binary(max_size=2000), st.binary(min_size=64, max_size=64)),
    st.builds(ChunkRequest, sha256, numbers, st.integers(1, MAX_CHUNK_BYTES)),
    st.builds(Chunk, sha256, numbers, st.binary(max_size=5000)),
    st.builds(NotAvailable, sha256),
    st.builds(Report, st.sampled_from(["running", "failed", "declined"]), numbers, st.text(max_size=100)),
    st.builds(ReportAck, numbers),
)


@given(messages)
def test_there_and_back(message):
    assert decode_message(encode_message(message)) == message


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=64), messages.map(encode_message)), st.data())
def test_whatever_comes_is_a_message_or_an_error(payload, data):
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode_message(bytes(changed))
    except PacketError:
        return
    assert decode_message(encode_message(message)) == message


def test_a_payload_nested_as_deep_as_it_is_long_is_an_error():
    with pytest.raises(PacketError):
        decode_message(b"\x81" * 65_000 + b"\x00")


@pytest.mark.parametrize(
    "content",
    [
        {"want": {"sha256": bytes(31), "offset": 0, "length": 1}},
        {"want": {"sha256": bytes(32), "offset": -1, "length": 1}},
        {"want": {"sha256": bytes(32), "offset": 0, "length": 0}},
        {"want": {"sha256": bytes(32), "offset": 0, "length": MAX_CHUNK_BYTES + 1}},
        {"want": {"sha256": bytes(32), "offset": 0}},
        {"want": {"sha256": bytes(32), "offset": True, "length": 1}},
        {"report": {"state": "excellent", "version": 1, "reason": ""}},
        {"report": {"state": "failed", "version": 1, "reason": "x" * 513}},
        {"heard": {"version": 1 << 32}},
        {"heard": 7},
        {"wish": {}},
        {},
        {"heard": {"version": 1}, "gone": {"sha256": bytes(32)}},
        [7],
    ],
)
def test_messages_out_of_bounds_are_refused(content):
    with pytest.raises(PacketError, match="^update: "):
        decode_message(cbor2.dumps(content))


def test_a_field_of_a_newer_side_is_left_out():
    assert decode_message(cbor2.dumps({"heard": {"version": 7, "mood": "good"}})) == ReportAck(7)


def test_a_long_reason_is_cut_to_whole_characters():
    message = decode_message(encode_message(Report("failed", 1, "é" * 1000)))
    assert message.reason == "é" * 256
