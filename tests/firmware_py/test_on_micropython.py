"""The wire code runs unchanged on real MicroPython, and says byte for byte what CPython says."""

import json
import shutil
from pathlib import Path

import pytest
from micropython_run import run

from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac
from firmware_py.protocol.framing import encode_frame

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden" / "records.json"
ROWS = json.loads(GOLDEN.read_text())
SECRET = bytes(range(32))

# Runs on MicroPython: what it makes of the vectors goes out as JSON.
SCRIPT = """
import binascii, json, sys
from firmware_py.protocol import framing, packet, frame_authenticator as seal

BYTES = ("model_hash", "payload")
secret = bytes(range(32))
seals = {"crc": (seal.Crc(), seal.Crc()), "mac": (seal.Mac(secret, seal.UPLINK), seal.Mac(secret, seal.DOWNLINK))}
found = {"implementation": sys.implementation.name, "records": []}
with open("records.json") as file:
    rows = json.load(file)
for row in rows:
    fields = dict(row["record"])
    for name in BYTES:
        fields[name] = binascii.unhexlify(fields[name])
    made = packet.encode_record(packet.Record(**fields))
    read = packet.decode_record(binascii.unhexlify(row["bytes"]))
    back = {}
    for name in row["record"]:
        value = getattr(read, name)
        back[name] = binascii.hexlify(value).decode() if name in BYTES else value
    frames = {}
    for kind, (up, down) in seals.items():
        frames[kind] = binascii.hexlify(framing.encode_frame(made, up)).decode()
    found["records"].append({"bytes": binascii.hexlify(made).decode(), "record": back, "frames": frames})
with open("stream.bin", "rb") as file:
    stream = file.read()
for kind, (up, down) in seals.items():
    deframer = framing.Deframer(down.open)
    records = []
    # As a UART hands it over: a few bytes at a time.
    for start in range(0, len(stream), 7):
        records += deframer.feed(stream[start : start + 7])
    found[kind] = {
        "records": [binascii.hexlify(record).decode() for record in records],
        "damaged": deframer.damaged_frames,
        "unauthentic": deframer.unauthentic_frames,
    }
longer = binascii.unhexlify(rows[0]["bytes"]) + b"x"
for what, data in (("short", b"EP"), ("magic", b"XX" + bytes(40)), ("longer", longer)):
    try:
        packet.decode_record(data)
    except packet.PacketError as error:
        found[what] = str(error)
print(json.dumps(found))
"""


def stream() -> bytes:
    """What may come down a line: garbage, frames with CRC and MAC, one damaged, one of another's secret."""
    records = [bytes.fromhex(row["bytes"]) for row in ROWS]
    damaged = bytearray(encode_frame(records[0], Mac(SECRET, DOWNLINK)))
    damaged[20] ^= 0x10
    return b"".join(
        (
            b"\x17\x00garbage from a boot loader\x00",
            *(encode_frame(record, Crc()) for record in records),
            bytes(damaged),
            *(encode_frame(record, Mac(SECRET, DOWNLINK)) for record in records),
            encode_frame(records[0], Mac(bytes(32), DOWNLINK)),
            encode_frame(records[1], Mac(SECRET, DOWNLINK)),
        )
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    board = tmp_path_factory.mktemp("board")
    shutil.copy(GOLDEN, board)
    (board / "stream.bin").write_bytes(stream())
    return json.loads(run(board, SCRIPT))


def test_it_is_micropython(found):
    assert found["implementation"] == "micropython"


def test_records_are_encoded_and_decoded_as_in_the_golden_vectors(found):
    assert [row["bytes"] for row in found["records"]] == [row["bytes"] for row in ROWS]
    assert [row["record"] for row in found["records"]] == [row["record"] for row in ROWS]


@pytest.mark.parametrize(("kind", "seal"), [("crc", Crc()), ("mac", Mac(SECRET, UPLINK))])
def test_frames_are_those_of_cpython(found, kind, seal):
    expected = [encode_frame(bytes.fromhex(row["bytes"]), seal).hex() for row in ROWS]
    assert [row["frames"][kind] for row in found["records"]] == expected


def test_good_frames_are_found_among_garbage_and_damaged_ones(found):
    records = [row["bytes"] for row in ROWS]
    assert found["crc"]["records"] == records
    assert found["mac"]["records"] == [*records, records[1]]
    assert found["mac"]["unauthentic"] + found["mac"]["damaged"] == len(records) + 4, (
        "two pieces of garbage, frames with CRC, a damaged one and another's"
    )


@pytest.mark.parametrize("what", ["short", "magic", "longer"])
def test_what_is_no_record_is_said(found, what):
    assert found[what]
