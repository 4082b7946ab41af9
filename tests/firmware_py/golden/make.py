"""Writes records.json: run once per version of the record format; vectors are only ever added."""

import json
from pathlib import Path

from firmware_py.protocol import packet

VECTORS = {
    "latent": packet.Record(
        packet.LATENT, 3, 1, 7, 42, 1001, 1_790_000_000_123_456, bytes(range(8)), bytes(range(120, 248))
    ),
    "acknowledgement of three": packet.acknowledge(packet.Record(packet.LATENT, 3, 1, 7, 42), [43, 45]),
    "refusal": packet.refuse(packet.Record(packet.LATENT, 3, 1, 7, 42), "unknown encoder"),
    "latent, first 32 values of 4 bits": packet.Record(
        packet.LATENT, 3, 1, 7, 43, 1002, 1_790_000_000_123_456, bytes(range(8)), bytes(range(0xA0, 0xB0))
    ),
    "answer to health that sets 16 bytes a latent": packet.Record(
        packet.HEALTH, 3, 1, 7, 5, sample_time_us=1_790_000_000_123_456, payload=b"\x10\x00"
    ),
    "greatest values": packet.Record(
        packet.HEALTH, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**64 - 1, b"\xff" * 8, b"\0"
    ),
    "request for a recording": packet.Record(
        packet.RECORDING,
        3,
        1,
        7,
        5,
        1001,
        1_790_000_000_123_456,
        payload=bytes.fromhex("a1656665746368a16a6d69736669745f70706d00"),
    ),
}

if __name__ == "__main__":
    rows = []
    for what, record in VECTORS.items():
        fields = {name: getattr(record, name) for name in record.__slots__}
        fields = {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}
        rows.append({"what": what, "record": fields, "bytes": packet.encode_record(record).hex()})
    Path(__file__).with_name("records.json").write_text(json.dumps(rows, indent=1) + "\n")
