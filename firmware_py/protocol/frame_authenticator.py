"""What closes a record on a byte stream: a checksum, or a keyed MAC; runs on MicroPython and CPython.

With a secret the MAC takes the CRC's place: it finds damage as surely (2**-64) and forgery too, and a
record with its acknowledgement still fits 20 ms of line time at 115200 baud (docs/decisions/0005).

HMAC is RFC 2104 with SHA-256, truncated to its first 8 bytes, over one byte of direction and the record, so
that what a device said cannot be played back to it. A record played again is known by its boot and sequence.
"""

import binascii
import hashlib
import struct

from firmware_py.errors import FirmwareError

SECRET_BYTES = 32
UPLINK = b"U"
DOWNLINK = b"D"

_BLOCK_BYTES = 64


class SealError(FirmwareError):
    """Bytes whose checksum does not fit them."""


class UnauthenticError(SealError):
    """A record whose MAC is not that of its device's secret: damaged, forged, or sealed with another."""


class Crc:
    """CRC-32 (IEEE 802.3), 4 bytes, little-endian: finds damage, not forgery."""

    size = 4

    def tag(self, record_bytes):
        """The 4 bytes that follow a record."""
        return struct.pack("<I", binascii.crc32(record_bytes) & 0xFFFFFFFF)

    def close(self, record_bytes):
        """``record_bytes`` and its checksum."""
        return record_bytes + self.tag(record_bytes)

    def open(self, data):
        """Record bytes out of ``data``. Raises ``SealError``."""
        body = data[: -self.size]
        # The CRC of nothing is zero: a line that sends one byte over and over would make records of nothing.
        if not body or self.close(body) != data:
            raise SealError("frame: CRC does not fit its %d bytes" % len(data))
        return body


class Mac:
    """HMAC-SHA-256 of a device's ``secret`` (32 bytes), 8 bytes; one direction each, UPLINK or DOWNLINK."""

    size = 8

    def __init__(self, secret, direction):
        if len(secret) != SECRET_BYTES:
            raise ValueError("secret: expected %d bytes, got %d" % (SECRET_BYTES, len(secret)))
        padded = secret + bytes(_BLOCK_BYTES - SECRET_BYTES)
        self._inner = bytes(byte ^ 0x36 for byte in padded) + direction
        self._outer = bytes(byte ^ 0x5C for byte in padded)

    def tag(self, record_bytes):
        """The 8 bytes that follow a record."""
        # Bytes are joined once: MicroPython's sha256 takes any buffer, and has no copy().
        inner = hashlib.sha256(self._inner)
        inner.update(record_bytes)
        outer = hashlib.sha256(self._outer)
        outer.update(inner.digest())
        return outer.digest()[: self.size]

    def close(self, record_bytes):
        """``record_bytes`` and its MAC."""
        return record_bytes + self.tag(record_bytes)

    def open(self, data):
        """Record bytes out of ``data``. Raises ``UnauthenticError``."""
        body = data[: -self.size]
        if len(data) < self.size or not same_bytes(self.tag(body), data[-self.size :]):
            raise UnauthenticError("frame: the MAC is not that of this device's secret")
        return body


def same_bytes(a, b):
    """Equality in a time that does not tell where two differ."""
    difference = len(a) ^ len(b)
    for x, y in zip(a, b):  # noqa: B905 (MicroPython's zip has no strict)
        difference |= x ^ y
    return difference == 0
