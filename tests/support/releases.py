"""Bundles, signed archives of them, and a fake of the centre's side of an update."""

import hashlib
from pathlib import Path

from nacl.signing import SigningKey
from tiny import ENCODER, bundle_fields

from central.updates.signing import sign_bundle
from firmware_py.inference.bundle import create_bundle
from firmware_py.protocol import packet
from firmware_py.protocol.update_messages import (
    Chunk,
    ChunkRequest,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)
from firmware_py.updates.archive import split_archive

KEY = SigningKey(bytes(range(32)))
# What follows the model is not read: another file, and so another model hash, of the same network.
OTHER_ENCODER = ENCODER + bytes(16)


def make_release(folder: Path, name="new", encoder=OTHER_ENCODER, files=None, **fields) -> Path:
    """A bundle folder; ``fields`` replace entries of its manifest."""
    create_bundle(folder, encoder, {**bundle_fields(), "name": name, **fields}, files)
    return folder


def write_public_key(path: Path, key: SigningKey = KEY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bytes(key.verify_key).hex() + "\n")
    return path


def sign(folder: Path, version: int, key: SigningKey = KEY, boards=()) -> bytes:
    return sign_bundle(folder, key, version, boards)


def make_offer(archive: bytes, version: int, **changes) -> Offer:
    statement, signature, _ = split_archive(archive)
    fields = {
        "version": version,
        "sha256": hashlib.sha256(archive).digest(),
        "archive_bytes": len(archive),
        "statement": statement,
        "signature": signature,
        **changes,
    }
    return Offer(**fields)


def answer_to(record: packet.Record, message) -> packet.Record:
    return packet.Record(
        packet.UPDATE,
        record.device,
        record.survey,
        record.boot,
        record.sequence,
        payload=encode_message(message),
    )


class FakeRollout:
    """Offers ``archive`` to whoever reports another version; ``reports`` is what was told, in order."""

    def __init__(self, archive: bytes, version: int, hears=lambda report: True) -> None:
        self.archive = archive
        self.offer = make_offer(archive, version)
        self.hears = hears
        self.reports: list[Report] = []
        self.wanted: list[ChunkRequest] = []

    def answers(self, record: packet.Record) -> list[packet.Record]:
        """What the centre says to an UPDATE record."""
        message = decode_message(record.payload)
        said: list = []
        if isinstance(message, Report):
            self.reports.append(message)
            said = [ReportAck(message.version)] if self.hears(message) else []
            if message.state == "running" and message.version < self.offer.version:
                said.append(self.offer)
        elif isinstance(message, ChunkRequest):
            self.wanted.append(message)
            data = self.archive[message.offset : message.offset + message.length]
            known = message.sha256 == self.offer.sha256
            said = [Chunk(message.sha256, message.offset, data) if known else NotAvailable(message.sha256)]
        return [answer_to(record, one) for one in said]
