"""Encode the RECORDING messages of device and centre: CBOR, ``{kind: {field: value}}``.

The header of each record names the event and the sample time of the recording. The centre asks in answers that the
device gets anyway, and the device sends one message at a time, so that a half-duplex line carries it::

    centre   fetch   send this recording (also in answer to hello, health and to the end of another transfer)
    device   part    I have it; its size and SHA-256     | none   I have not, and why
    centre   want    these bytes of it                   | wait   ask again after so many seconds
    device   piece   those bytes
    centre   end     stored, or no longer wanted

A device repeats its last message until it is answered. The centre says which bytes it lacks, so both sides may restart
at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firmware_py.protocol.cbor_messages import MessageSet, cut

# Maximum piece; fits into the longest record with the rest of the message.
MAX_PIECE_BYTES = 32_768
# Largest coded recording.
MAX_PART_BYTES = 1 << 26
MAX_WAIT_S = 3600
MAX_REASON_BYTES = 200
# 100 %, in parts per million.
MAX_MISFIT_PPM = 1_000_000


@dataclass(frozen=True)
class Fetch:
    """Request for a recording; ``misfit_ppm`` is the allowed relative RMS misfit, 0 for lossless."""

    misfit_ppm: int


@dataclass(frozen=True)
class Part:
    """Description of a device's coded recording (``recording_codec``)."""

    sha256: bytes
    part_bytes: int


@dataclass(frozen=True)
class PieceRequest:
    """Request for bytes of the part with this SHA-256, from ``offset``, at most ``length``."""

    sha256: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class Piece:
    sha256: bytes
    offset: int
    data: bytes


@dataclass(frozen=True)
class Wait:
    """The centre takes nothing now; describe the part again after ``seconds``."""

    seconds: int


@dataclass(frozen=True)
class End:
    """The centre has stored the part or the reason, or does not want the recording any more."""


@dataclass(frozen=True)
class NoRecording:
    """The device cannot send the recording; ``reason`` is for the operator."""

    reason: str


Message = Fetch | Part | PieceRequest | Piece | Wait | End | NoRecording
# Names on the wire.
_KINDS: dict[str, Any] = {
    "fetch": Fetch,
    "part": Part,
    "want": PieceRequest,
    "piece": Piece,
    "wait": Wait,
    "end": End,
    "none": NoRecording,
}
_RANGES = {
    "misfit_ppm": (0, MAX_MISFIT_PPM),
    "part_bytes": (1, MAX_PART_BYTES),
    "offset": (0, MAX_PART_BYTES),
    "length": (1, MAX_PIECE_BYTES),
    "seconds": (1, MAX_WAIT_S),
}


def encode_message(message: Message) -> bytes:
    """Return the payload of a RECORDING record; a long reason is shortened."""
    if isinstance(message, NoRecording):
        message = NoRecording(cut(message.reason, MAX_REASON_BYTES))
    return _MESSAGES.encode(message)


def decode_message(payload: bytes) -> Message:
    """Decode the message in ``payload``, and check each field's type and range.

    Raises:
        PacketError: The payload is not valid.
    """
    return _MESSAGES.decode(payload)


def _is_within_bounds(name: str, value: Any) -> bool:
    if name == "sha256":
        return len(value) == 32
    if name in _RANGES:
        low, high = _RANGES[name]
        return low <= value <= high
    if name == "data":
        return 1 <= len(value) <= MAX_PIECE_BYTES
    return len(value.encode("utf-8", "replace")) <= MAX_REASON_BYTES


_MESSAGES = MessageSet("recording", _KINDS, _is_within_bounds)
