"""Authenticate records on a byte stream with a checksum or a keyed MAC; runs on MicroPython and CPython.

With a secret the MAC replaces the CRC. It detects damage as reliably (2**-64) and forgery too. A record with its
acknowledgement still fits into 20 ms of line time at 115200 baud (docs/decisions/0005). The MAC is HMAC (RFC 2104) with
SHA-256, truncated to the first 8 bytes, over one direction byte and the record. The direction byte keeps a device's own
records from being played back to it. Replayed records are recognised by boot and sequence.
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
    """The checksum does not match."""


class UnauthenticError(SealError):
    """The MAC does not match the device's secret: damage, forgery, or another secret."""


class Crc:
    """CRC-32 (IEEE 802.3), 4 bytes, little-endian; detects damage, not forgery."""

    size = 4

    def tag(self, record_bytes):
        """Return the 4 bytes that follow a record."""
        return struct.pack("<I", binascii.crc32(record_bytes) & 0xFFFFFFFF)

    def close(self, record_bytes):
        """Return ``record_bytes`` followed by its checksum."""
        return record_bytes + self.tag(record_bytes)

    def open(self, data):
        """Verify ``data`` and return the record's bytes.

        Raises:
            SealError: The checksum does not match.
        """
        body = data[: -self.size]
        # The CRC of nothing is zero: a line that repeats one byte would otherwise produce empty records.
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
        """Return the 8 bytes that follow a record."""
        # Bytes are joined once: MicroPython's sha256 takes any buffer, and has no copy().
        inner = hashlib.sha256(self._inner)
        inner.update(record_bytes)
        outer = hashlib.sha256(self._outer)
        outer.update(inner.digest())
        return outer.digest()[: self.size]

    def close(self, record_bytes):
        """Return ``record_bytes`` followed by its MAC."""
        return record_bytes + self.tag(record_bytes)

    def open(self, data):
        """Verify ``data`` and return the record's bytes.

        Raises:
            UnauthenticError: The MAC does not match.
        """
        body = data[: -self.size]
        if len(data) < self.size or not same_bytes(self.tag(body), data[-self.size :]):
            raise UnauthenticError("frame: the MAC is not that of this device's secret")
        return body


def same_bytes(a, b):
    """Compare bytes in constant time."""
    difference = len(a) ^ len(b)
    for x, y in zip(a, b):  # noqa: B905 (MicroPython's zip has no strict)
        difference |= x ^ y
    return difference == 0
