"""Golden vectors of messages and frames hold for this implementation, and for one written from docs/protocol.md alone.

The second is in this file: it imports nothing of the project.
"""

import binascii
import hashlib
import hmac
import json
import struct
from pathlib import Path

import pytest

from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac
from firmware_py.protocol.framing import Deframer, encode_frame
from firmware_py.protocol.health_messages import (
    Health,
    Hello,
    decode_health,
    decode_newest_boot,
    decode_ranges,
    decode_setting,
    encode_health,
    encode_setting,
)
from firmware_py.protocol.recording_messages import decode_message as decode_recording_message
from firmware_py.protocol.recording_messages import encode_message as encode_recording_message
from firmware_py.protocol.update_messages import decode_message, encode_message

GOLDEN = json.loads((Path(__file__).parent / "golden" / "messages.json").read_text())
RECORDS = json.loads((Path(__file__).parent / "golden" / "records.json").read_text())
SECRET = bytes.fromhex(GOLDEN["secret"])
CONTROL = [v for v in GOLDEN["payloads"] if v["what"].startswith("hel") or v["what"].startswith("health")]
UPDATES = [v for v in GOLDEN["payloads"] if v["what"].startswith("update")]
RECORDINGS = [v for v in GOLDEN["payloads"] if v["what"].startswith("recording")]
BYTES_FIELDS = ("sha256", "statement", "signature", "data")


def named(vector):
    return vector["what"]


@pytest.mark.parametrize("vector", CONTROL, ids=named)
def test_hello_and_health(vector):
    kind = Hello if vector["what"] == "hello" else Health
    message = kind(*vector["fields"])
    # A vector with fewer fields is an earlier version's: it is read, and no longer written.
    if len(vector["fields"]) == len(kind.__dataclass_fields__):
        assert encode_health(message).hex() == vector["payload"]
    assert decode_health(bytes.fromhex(vector["payload"]), kind) == message


def test_the_setting():
    (vector,) = (v for v in GOLDEN["payloads"] if v["what"].startswith("setting"))
    assert [decode_setting(bytes.fromhex(vector["payload"]))] == vector["fields"]


def test_the_newest_boot():
    (vector,) = (v for v in GOLDEN["payloads"] if v["what"] == "newest boot")
    latent_bytes, newest_boot = vector["fields"]
    payload = bytes.fromhex(vector["payload"])
    assert encode_setting(latent_bytes, newest_boot) == payload
    assert (decode_setting(payload), decode_newest_boot(payload)) == (latent_bytes, newest_boot)
    assert decode_ranges(payload) == []


def test_the_request_for_records():
    (vector,) = (v for v in GOLDEN["payloads"] if v["what"] == "request for records")
    latent_bytes, ranges = vector["fields"]
    payload = bytes.fromhex(vector["payload"])
    assert encode_setting(latent_bytes, ranges=ranges) == payload
    assert (decode_setting(payload), decode_newest_boot(payload)) == (latent_bytes, 0)
    assert [list(one) for one in decode_ranges(payload)] == ranges


@pytest.mark.parametrize("vector", UPDATES, ids=named)
def test_updates(vector):
    assert encode_message(decode_message(bytes.fromhex(vector["payload"]))).hex() == vector["payload"]


@pytest.mark.parametrize("vector", RECORDINGS, ids=named)
def test_recordings(vector):
    message = decode_recording_message(bytes.fromhex(vector["payload"]))
    assert encode_recording_message(message).hex() == vector["payload"]


@pytest.mark.parametrize("vector", GOLDEN["frames"], ids=named)
def test_frames(vector):
    seal = {"crc": Crc(), "mac up": Mac(SECRET, UPLINK), "mac down": Mac(SECRET, DOWNLINK)}[vector["seal"]]
    record = bytes.fromhex(vector["record"])
    assert seal.tag(record).hex() == vector["tag"]
    assert encode_frame(record, seal).hex() == vector["frame"]
    assert Deframer(seal.open).feed(bytes.fromhex(vector["frame"])) == [record]


# From the page alone.


def cbor(value):
    """RFC 8949, definite lengths, shortest heads."""
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return head(3, len(text)) + text
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    return head(5, len(value)) + b"".join(cbor(key) + cbor(inner) for key, inner in value.items())


def head(major, number):
    if number < 24:
        return bytes([major << 5 | number])
    for extra, form in ((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q")):
        if number < 1 << 8 * struct.calcsize(form):
            return bytes([major << 5 | extra]) + struct.pack(form, number)
    raise ValueError(number)


def cobs(data):
    """Blocks of at most 254 bytes without a zero, each after its length and one."""
    out = b""
    for piece in data.split(b"\0"):
        while len(piece) >= 254:
            out += b"\xff" + piece[:254]
            piece = piece[254:]
            if not piece:
                break
        else:
            out += bytes([len(piece) + 1]) + piece
            continue
        out += b"\x01"
    return out


def tag(seal, record):
    if seal == "crc":
        return struct.pack("<I", binascii.crc32(record))
    direction = {"mac up": b"U", "mac down": b"D"}[seal]
    return hmac.new(SECRET, direction + record, hashlib.sha256).digest()[:8]


@pytest.mark.parametrize("vector", GOLDEN["payloads"], ids=named)
def test_payloads_can_be_made_from_the_page_alone(vector):
    fields = vector["fields"]
    if vector["what"].startswith("setting"):
        assert struct.pack("<H", *fields).hex() == vector["payload"]
        return
    if vector["what"] == "newest boot":
        assert struct.pack("<HI", *fields).hex() == vector["payload"]
        return
    if vector["what"] == "request for records":
        latent_bytes, ranges = fields
        head = struct.pack("<HIB", latent_bytes, 0, len(ranges))
        assert (head + b"".join(struct.pack("<III", *one) for one in ranges)).hex() == vector["payload"]
        return
    if isinstance(fields, dict):
        ((kind, values),) = fields.items()
        fields = {kind: {name: bytes.fromhex(v) if name in BYTES_FIELDS else v for name, v in values.items()}}
    assert cbor(fields).hex() == vector["payload"]


@pytest.mark.parametrize("vector", GOLDEN["frames"], ids=named)
def test_frames_can_be_made_from_the_page_alone(vector):
    record = bytes.fromhex(vector["record"])
    assert tag(vector["seal"], record).hex() == vector["tag"]
    assert (cobs(record + tag(vector["seal"], record)) + b"\0").hex() == vector["frame"]


@pytest.mark.parametrize("vector", RECORDS, ids=named)
def test_records_can_be_made_from_the_page_alone(vector):
    given = vector["record"]
    numbers = (given[n] for n in ("type", "device", "survey", "boot", "sequence", "event", "sample_time_us"))
    model_hash, payload = bytes.fromhex(given["model_hash"]), bytes.fromhex(given["payload"])
    header = struct.pack("<2sBBHHIIIQ8sH", b"EP", 1, *numbers, model_hash, len(payload))
    assert (header + payload).hex() == vector["bytes"]
