"""Encode a device's HELLO and HEALTH records: a CBOR array of the fields below, in this order.

New fields are appended and never re-used. A receiver ignores unknown fields; missing ones at the end are null. All are
integers or short text, so a record takes about 10 ms on a serial line at 115200 baud. The record's header carries the
device, the boot, the active model, its own sequence count, and the device's clock as the sample time.

The centre answers with a record of the same type, boot and number whose sample time is the centre's clock. The device
assumes that the answer took half the round trip. The answer's payload is the set length of latents in bytes (uint16,
little-endian), 0 if the device chooses. If a HELLO's boot is behind, the newest known boot follows (uint32), and the
device continues after it. An empty payload, as from older centres, sets nothing.

A centre that lacks acknowledged records asks for them again, in the answer to a HEALTH that has the field ``resent``:
the newest boot, 0, the number of ranges (uint8, at most ``MAX_RANGES``) and the ranges follow, each boot, first and
last sequence (uint32). The device sends those that it still has, and counts the others in ``not_kept``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import cbor2

from firmware_py.protocol.packet import PacketError

MAX_BYTES = 1024
MAX_TEXT_BYTES = 64
# A rejection names what was expected and found.
MAX_REASON_BYTES = 200
MAX_INTERVAL_S = 86_400
# Integer range that JSON and floating point represent exactly.
_MAX_NUMBER = (1 << 53) - 1
_SIGNED = ("temperature_mc", "clock_offset_us")


@dataclass(frozen=True)
class Hello:
    """Sent at the start and on a new connection: identity, and the health interval ``interval_s``.

    ``update_version`` is the bundle's version, None if updates are disabled.
    """

    firmware: str
    board: str
    interval_s: int
    spool_records: int
    waiting: int
    update_version: int | None = None


@dataclass(frozen=True)
class Health:
    """State of a device.

    Attributes:
        waiting: Unacknowledged records, from ``first_sequence`` of ``first_boot``.
        dropped: Records dropped from a full spool.
        refused: Records that the centre refused.
        next_sequence: Number of the next record.
        temperature_mc: Temperature in thousandths of a degree Celsius.
        clock_offset_us: Centre's clock minus this device's, to within half of ``round_trip_us``.
        latent_bytes: Current length of latents.
        rejected: Recordings that could not be encoded since the start; ``rejection`` is the last reason.
        resent: Acknowledged records sent again since the start, because the centre asked for them.
        not_kept: Records that the centre asked for and that were not here any more, counted at each request.
        kept_recordings: Recordings that the device still has, and can send on request.
        last_error: Error with which an earlier start of a microcontroller ended.
    """

    interval_s: int
    uptime_s: int
    waiting: int
    dropped: int
    refused: int
    next_sequence: int
    acknowledged_boot: int | None = None
    acknowledged_sequence: int | None = None
    first_boot: int | None = None
    first_sequence: int | None = None
    encode_us: int | None = None
    temperature_mc: int | None = None
    disk_free_mib: int | None = None
    memory_free_mib: int | None = None
    clock_offset_us: int | None = None
    round_trip_us: int | None = None
    update_version: int | None = None
    update_state: str | None = None
    latent_bytes: int | None = None
    rejected: int | None = None
    rejection: str | None = None
    resent: int | None = None
    not_kept: int | None = None
    kept_recordings: int | None = None
    last_error: str | None = None


# Records that the centre asks for: boot, first and last sequence.
Range = tuple[int, int, int]
# Ranges in an answer; the rest follows in the next one.
MAX_RANGES = 16
SETTING = struct.Struct("<H")
NEWEST_BOOT = struct.Struct("<I")
RANGE = struct.Struct("<3I")
_RANGES_AT = SETTING.size + NEWEST_BOOT.size
_Message = TypeVar("_Message", Hello, Health)


def encode_health(message: Hello | Health) -> bytes:
    """Return the payload of a HELLO or HEALTH record; text that is too long is truncated."""
    return cbor2.dumps([_cut(name, value) for name, value in vars(message).items()])


def _max_bytes(name: str) -> int:
    return MAX_REASON_BYTES if name == "rejection" else MAX_TEXT_BYTES


def _cut(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "replace")[: _max_bytes(name)].decode("utf-8", "ignore")


def decode_health(payload: bytes, kind: type[_Message]) -> _Message:
    """Decode a ``Hello`` or ``Health`` from ``payload``, and check each field's type and range.

    Raises:
        PacketError: The payload is not valid.
    """
    name = kind.__name__.lower()
    if len(payload) > MAX_BYTES:
        raise PacketError(f"{name}: expected at most {MAX_BYTES} bytes, got {len(payload)}")
    try:
        content = cbor2.loads(payload)
    except (cbor2.CBORDecodeError, RecursionError) as error:
        raise PacketError(f"{name}: not CBOR ({error})") from None
    known = fields(kind)
    if type(content) is not list:
        raise PacketError(f"{name}: expected an array of its fields")
    values = content + [None] * (len(known) - len(content))
    for field, value in zip(known, values, strict=False):
        if not _is_within_bounds(field.name, str(field.type), value):
            raise PacketError(f"{name}: {field.name} is missing or out of bounds")
    return kind(*values[: len(known)])


def encode_setting(latent_bytes: int, newest_boot: int = 0, ranges: Sequence[Range] = ()) -> bytes:
    """Encode the payload of an answer to HELLO or HEALTH.

    Args:
        latent_bytes: bytes of a latent; 0 is the device's own rate.
        newest_boot: newest boot known of the device, where its own is behind; else 0.
        ranges: records to send again, at most ``MAX_RANGES``.
    """
    if not ranges:
        return SETTING.pack(latent_bytes) + (NEWEST_BOOT.pack(newest_boot) if newest_boot else b"")
    asked = bytes([len(ranges)]) + b"".join(RANGE.pack(*one) for one in ranges)
    return SETTING.pack(latent_bytes) + NEWEST_BOOT.pack(newest_boot) + asked


def decode_setting(payload: bytes) -> int | None:
    """Return the length of latents that the centre has set, in bytes; None if the payload is empty.

    Raises:
        PacketError: The payload is not valid.
    """
    if not payload:
        return None
    if len(payload) < SETTING.size:
        raise PacketError(f"setting: expected at least {SETTING.size} bytes, got {len(payload)}")
    return SETTING.unpack_from(payload)[0]


def decode_newest_boot(payload: bytes) -> int:
    """Return the newest boot of this device that the centre knows, if its own is behind; else 0."""
    if len(payload) < SETTING.size + NEWEST_BOOT.size:
        return 0
    return int(NEWEST_BOOT.unpack_from(payload, SETTING.size)[0])


def decode_ranges(payload: bytes) -> list[Range]:
    """Return the records that the centre asks for again.

    Raises:
        PacketError: The payload is not valid.
    """
    number, content = payload[_RANGES_AT : _RANGES_AT + 1], payload[_RANGES_AT + 1 :]
    if not number:
        return []
    expected_bytes = number[0] * RANGE.size
    if number[0] > MAX_RANGES or len(content) < expected_bytes:
        raise PacketError(
            f"setting: expected at most {MAX_RANGES} ranges of {RANGE.size} bytes, got {number[0]} in "
            f"{len(content)} bytes"
        )
    ranges = list(RANGE.iter_unpack(content[:expected_bytes]))
    for boot, first, last in ranges:
        if not 1 <= first <= last:
            raise PacketError(f"setting: expected a range of records, got {first} to {last} of boot {boot}")
    return ranges


def _is_within_bounds(name: str, expected: str, value: Any) -> bool:
    if value is None:
        return expected.endswith("| None")
    if expected.startswith("str"):
        return type(value) is str and len(value.encode("utf-8", "replace")) <= _max_bytes(name)
    if type(value) is not int:
        return False
    if name == "interval_s":
        return 1 <= value <= MAX_INTERVAL_S
    return (-_MAX_NUMBER if name in _SIGNED else 0) <= value <= _MAX_NUMBER
