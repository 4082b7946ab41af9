"""What a device says of itself in HELLO and HEALTH records: a CBOR array of the fields below, in their order.

New fields are appended, never re-used; a receiver leaves out those it does not know, and absent last ones are
null. All are whole numbers or short text, so that a record costs a serial line some 10 ms at 115200 baud.

The record's header carries the rest: who, the boot, the model in use, a number of its own count, and as sample
time the device's clock. The centre answers with a record of the same type, boot and number whose sample time is the
centre's clock: half the time between the two is what the device takes the way to have been. Its payload is what the
centre has set: the bytes of a latent (uint16, little-endian), 0 where that is left to the device. The answer to a HELLO
of a boot that is behind has the newest boot that the centre knows of the device as well (uint32); the device goes on
after that one. An empty payload, as older centres send it, sets nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import cbor2

from firmware_py.protocol.packet import PacketError

MAX_BYTES = 1024
MAX_TEXT_BYTES = 64
# A rejection names what was expected and found.
MAX_REASON_BYTES = 200
MAX_INTERVAL_S = 86_400
# What JSON and floating point keep exactly.
_MAX_NUMBER = (1 << 53) - 1
_SIGNED = ("temperature_mc", "clock_offset_us")


@dataclass(frozen=True)
class Hello:
    """Said at the start and on a new connection: what this device is, and that health comes every
    ``interval_s``. ``update_version`` is the bundle's, None where no updates are taken."""

    firmware: str
    board: str
    interval_s: int
    spool_records: int
    waiting: int
    update_version: int | None = None


@dataclass(frozen=True)
class Health:
    """How a device is. ``waiting`` records are unacknowledged, from number ``first_sequence`` of ``first_boot``;
    ``dropped`` were given up for want of room, ``refused`` by the centre; the next is ``next_sequence``.

    ``temperature_mc`` is in thousandths of a degree Celsius. ``clock_offset_us`` is how far the centre's clock
    is ahead of this device's, right to within half of ``round_trip_us``. ``latent_bytes`` is the length of the
    latents it now makes. ``rejected`` recordings could not be encoded since the start, the last for ``rejection``.
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


SETTING = struct.Struct("<H")
NEWEST_BOOT = struct.Struct("<I")
_Message = TypeVar("_Message", Hello, Health)


def encode_health(message: Hello | Health) -> bytes:
    """The payload of a HELLO or HEALTH record; text that is too long is cut."""
    return cbor2.dumps([_cut(name, value) for name, value in vars(message).items()])


def _max_bytes(name: str) -> int:
    return MAX_REASON_BYTES if name == "rejection" else MAX_TEXT_BYTES


def _cut(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "replace")[: _max_bytes(name)].decode("utf-8", "ignore")


def decode_health(payload: bytes, kind: type[_Message]) -> _Message:
    """The ``Hello`` or ``Health`` in ``payload``, each field of its type and in bounds. Raises ``PacketError``."""
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


def encode_setting(latent_bytes: int, newest_boot: int = 0) -> bytes:
    """Encode the payload of an answer to HELLO or HEALTH.

    Args:
        latent_bytes: bytes of a latent; 0 is the device's own rate.
        newest_boot: newest boot known of the device, where its own is behind; else 0.
    """
    return SETTING.pack(latent_bytes) + (NEWEST_BOOT.pack(newest_boot) if newest_boot else b"")


def decode_setting(payload: bytes) -> int | None:
    """The bytes a latent that the centre has set, None where it says nothing. Raises ``PacketError``."""
    if not payload:
        return None
    if len(payload) < SETTING.size:
        raise PacketError(f"setting: expected at least {SETTING.size} bytes, got {len(payload)}")
    return SETTING.unpack_from(payload)[0]


def decode_newest_boot(payload: bytes) -> int:
    """The newest boot that the centre knows of this device, where its own is behind; else 0."""
    if len(payload) < SETTING.size + NEWEST_BOOT.size:
        return 0
    return int(NEWEST_BOOT.unpack_from(payload, SETTING.size)[0])


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
