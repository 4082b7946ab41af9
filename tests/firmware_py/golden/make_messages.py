"""Adds to messages.json: payloads of control messages, and records as they are framed.

Vectors are only ever added: those of messages that have since got more fields stay, as devices in the field send them.
"""

import json
from dataclasses import replace
from pathlib import Path

from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Crc, Mac
from firmware_py.protocol.framing import encode_frame
from firmware_py.protocol.health_messages import Health, Hello, encode_health, encode_setting
from firmware_py.protocol.recording_messages import (
    End,
    Fetch,
    NoRecording,
    Part,
    Piece,
    PieceRequest,
    Wait,
)
from firmware_py.protocol.recording_messages import encode_message as encode_recording_message
from firmware_py.protocol.update_messages import (
    Chunk,
    ChunkRequest,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    encode_message,
)

SHA256, SECRET = bytes(range(32)), bytes(range(100, 132))
HELLO = Hello("0.1.0", "Pi ä", 60, 20000, 3, 2)
HEALTH = Health(60, 3600, 3, 1, 2, 43, 1_790_000_000, 41, 1_790_000_000, 42, 1500, -5250, 512)
HEALTH_FULL = Health(
    60, 3600, 0, 0, 0, 9, 7, 8, 7, 9, 900, 41_000, 100, 200, -123_456, 48_000, 2, "idle", 128
)
HEALTH_REJECTED = Health(
    60,
    3600,
    0,
    0,
    0,
    9,
    7,
    8,
    7,
    9,
    900,
    41_000,
    100,
    200,
    -123_456,
    48_000,
    2,
    "idle",
    128,
    4,
    "70 receivers, got 36",
)
HEALTH_AGAIN = replace(HEALTH_REJECTED, resent=4, not_kept=300)
HEALTH_KEPT = replace(HEALTH_AGAIN, kept_recordings=1200)
HEALTH_ERROR = replace(HEALTH_KEPT, last_error="OSError(110,)")
UPDATES = {
    "offer": Offer(2, SHA256, 300_000, b"statement", bytes(range(64))),
    "want": ChunkRequest(SHA256, 32_768, 32_768),
    "chunk": Chunk(SHA256, 32_768, b"\x00\x01\x02\xff"),
    "gone": NotAvailable(SHA256),
    "report": Report("failed", 2, "arena too small"),
    "heard": ReportAck(2),
}
RECORDINGS = {
    "fetch": Fetch(1000),
    "part": Part(SHA256, 20_700),
    "want": PieceRequest(SHA256, 4096, 32_768),
    "piece": Piece(SHA256, 4096, b"\x00\x01\x02\xff"),
    "wait": Wait(600),
    "end": End(),
    "none": NoRecording("event 7: not kept any more"),
}
# Short, with a zero at either end of a block; long, with 254 bytes without a zero and more.
SHORT = packet.Record(
    packet.LATENT, 3, 1, 7, 42, 1001, 1_790_000_000_123_456, bytes(range(8)), b"\x00\x01\x00"
)
LONG = packet.Record(packet.LATENT, 3, 1, 7, 43, 1001, 1, bytes(range(8)), bytes(range(1, 256)) * 2)


def payloads():
    yield {"what": "hello", "payload": encode_health(HELLO).hex(), "fields": list(vars(HELLO).values())}
    every = {
        "health": HEALTH,
        "health, every field": HEALTH_FULL,
        "health, rejected recordings": HEALTH_REJECTED,
        "health, records sent again": HEALTH_AGAIN,
        "health, kept recordings": HEALTH_KEPT,
        "health, last error": HEALTH_ERROR,
    }
    for what, health in every.items():
        yield {"what": what, "payload": encode_health(health).hex(), "fields": list(vars(health).values())}
    yield {"what": "setting of 64 bytes", "payload": encode_setting(64).hex(), "fields": [64]}
    payload = encode_setting(64, 1_790_000_000).hex()
    yield {"what": "newest boot", "payload": payload, "fields": [64, 1_790_000_000]}
    ranges = [(1_790_000_000, 3, 7), (9, 1, 1)]
    yield {
        "what": "request for records",
        "payload": encode_setting(64, 0, ranges).hex(),
        "fields": [64, ranges],
    }
    for what, message in UPDATES.items():
        fields = {k: v.hex() if isinstance(v, bytes) else v for k, v in vars(message).items()}
        yield {"what": f"update, {what}", "payload": encode_message(message).hex(), "fields": {what: fields}}
    for what, message in RECORDINGS.items():
        fields = {k: v.hex() if isinstance(v, bytes) else v for k, v in vars(message).items()}
        payload = encode_recording_message(message).hex()
        yield {"what": f"recording, {what}", "payload": payload, "fields": {what: fields}}


def frames():
    seals = {"crc": Crc(), "mac up": Mac(SECRET, UPLINK), "mac down": Mac(SECRET, DOWNLINK)}
    for length, record in (("short", SHORT), ("long", LONG)):
        data = packet.encode_record(record)
        for seal, closing in seals.items():
            yield {
                "what": f"{length}, {seal}",
                "seal": seal,
                "record": data.hex(),
                "tag": closing.tag(data).hex(),
                "frame": encode_frame(data, closing).hex(),
            }


if __name__ == "__main__":
    path = Path(__file__).with_name("messages.json")
    content = json.loads(path.read_text())
    for kind, vectors in (("payloads", payloads()), ("frames", frames())):
        known = {vector["what"] for vector in content[kind]}
        content[kind] += [vector for vector in vectors if vector["what"] not in known]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
