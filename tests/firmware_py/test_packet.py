"""Records: round trip, golden vectors, and nothing but ``PacketError`` for bytes that are none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_py.protocol import packet
from firmware_py.protocol.packet import PacketError, Record, decode_record, encode_record

GOLDEN = Path(__file__).parent / "golden" / "records.json"


def number(bits):
    return st.integers(0, 2**bits - 1)


records = st.builds(
    Record,
    type=st.sampled_from(packet.TYPES),
    device=number(16),
    survey=number(16),
    boot=number(32),
    sequence=number(32),
    event=number(32),
    sample_time_us=number(64),
    model_hash=st.binary(min_size=8, max_size=8),
    payload=st.binary(max_size=600),
)


@given(records)
def test_round_trip(record):
    data = encode_record(record)
    assert len(data) == packet.HEADER_BYTES + len(record.payload)
    assert decode_record(data) == record


@given(records, st.data())
def test_a_truncated_or_longer_record_is_refused(record, data):
    encoded = encode_record(record)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(PacketError):
        decode_record(encoded[:cut])
    with pytest.raises(PacketError):
        decode_record(encoded + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.binary(max_size=300))
def test_garbage_is_a_record_or_a_packet_error(garbage):
    try:
        record = decode_record(garbage)
    except PacketError:
        return
    assert encode_record(record) == garbage


@given(records, st.lists(number(32), max_size=50))
def test_an_acknowledgement_names_every_sequence(record, more):
    ack = decode_record(encode_record(packet.acknowledge(record, more)))
    assert (ack.device, ack.survey, ack.boot) == (record.device, record.survey, record.boot)
    assert packet.acknowledged_sequences(ack) == (record.sequence, *more)


def test_an_acknowledgement_with_a_ragged_list_is_refused():
    with pytest.raises(PacketError, match="5 bytes is no list of uint32"):
        packet.acknowledged_sequences(Record(packet.ACK, 1, 1, 1, 1, payload=b"12345"))


def test_a_refusal_carries_its_reason():
    refusal = packet.refuse(Record(packet.LATENT, 3, 1, 2, 9), "unknown encoder")
    assert (refusal.type, refusal.sequence, refusal.payload) == (packet.REFUSAL, 9, b"unknown encoder")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", 65536),
        ("device", -1),
        ("boot", 2**32),
        ("sample_time_us", 2**64),
        ("payload", bytes(65536)),
    ],
)
def test_a_field_that_does_not_fit_is_named(field, value):
    record = Record(packet.LATENT, 1, 1, 1, 1)
    setattr(record, field, value)
    with pytest.raises(PacketError, match=field):
        encode_record(record)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0, 0, "magic"), (2, 9, "expected version 1, got 9"), (3, 99, "unknown type 99")],
)
def test_a_foreign_header_is_named(offset, value, message):
    data = bytearray(encode_record(Record(packet.LATENT, 1, 1, 1, 1)))
    data[offset] = value
    with pytest.raises(PacketError, match=message):
        decode_record(bytes(data))


@pytest.mark.parametrize("vector", json.loads(GOLDEN.read_text()), ids=lambda v: v["what"])
def test_golden_vectors(vector):
    """The same vectors hold for every implementation of the record format."""
    fields = dict(vector["record"])
    fields["model_hash"] = bytes.fromhex(fields["model_hash"])
    fields["payload"] = bytes.fromhex(fields["payload"])
    record = Record(**fields)
    assert encode_record(record).hex() == vector["bytes"]
    assert decode_record(bytes.fromhex(vector["bytes"])) == record
