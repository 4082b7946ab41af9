"""Encode the UPDATE messages of device and centre: CBOR, ``{kind: {field: value}}``.

The device asks and the centre answers, one message at a time, so that a half-duplex line carries it::

    centre   offer   an update is there (also in answer to a health record)
    device   want    so many bytes of it, from here
    centre   chunk   those bytes      | gone   not on offer any more
    device   report  running | failed | declined
    centre   heard   the report has arrived
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firmware_py.protocol.cbor_messages import MessageSet, cut
from firmware_py.updates.archive import MAX_STATEMENT_BYTES

# Maximum chunk; fits into the longest record with the rest of the message.
MAX_CHUNK_BYTES = 32_768
MAX_REASON_BYTES = 512
RUNNING, FAILED, DECLINED = "running", "failed", "declined"


@dataclass(frozen=True)
class Offer:
    """Offer of an archive: its length, SHA-256, and the statement and signature at its start."""

    version: int
    sha256: bytes
    archive_bytes: int
    statement: bytes
    signature: bytes


@dataclass(frozen=True)
class ChunkRequest:
    """Request for bytes ``offset`` to ``offset + length`` of the archive with this SHA-256."""

    sha256: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    sha256: bytes
    offset: int
    data: bytes


@dataclass(frozen=True)
class NotAvailable:
    """The archive is no longer offered to this device."""

    sha256: bytes


@dataclass(frozen=True)
class Report:
    """Report on an update; ``state`` is running (``version`` in use), failed or declined (with ``reason``)."""

    state: str
    version: int
    reason: str = ""


@dataclass(frozen=True)
class ReportAck:
    """Acknowledgement of a report on ``version``; the centre has the model's decoder."""

    version: int


Message = Offer | ChunkRequest | Chunk | NotAvailable | Report | ReportAck
# Names on the wire.
_KINDS: dict[str, Any] = {
    "offer": Offer,
    "want": ChunkRequest,
    "chunk": Chunk,
    "gone": NotAvailable,
    "report": Report,
    "heard": ReportAck,
}
_MAX_BYTES = {"sha256": 32, "signature": 64, "statement": MAX_STATEMENT_BYTES, "data": MAX_CHUNK_BYTES}


def encode_message(message: Message) -> bytes:
    """Return the payload of an UPDATE record."""
    if isinstance(message, Report):
        message = Report(message.state, message.version, cut(message.reason, MAX_REASON_BYTES))
    return _MESSAGES.encode(message)


def decode_message(payload: bytes) -> Message:
    """Decode the message in ``payload``, and check each field's type and range.

    Raises:
        PacketError: The payload is not valid.
    """
    return _MESSAGES.decode(payload)


def _is_within_bounds(name: str, value: Any) -> bool:
    if name in ("sha256", "signature"):
        return len(value) == _MAX_BYTES[name]
    if name == "length":
        return 1 <= value <= MAX_CHUNK_BYTES
    if isinstance(value, int):
        return 0 <= value < 1 << 32
    if name == "state":
        return value in (RUNNING, FAILED, DECLINED)
    return len(value) <= _MAX_BYTES.get(name, MAX_REASON_BYTES)


_MESSAGES = MessageSet("update", _KINDS, _is_within_bounds)
