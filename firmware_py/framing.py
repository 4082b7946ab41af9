"""Records on byte streams (serial, TCP): COBS(record + CRC-32) 0x00; runs on MicroPython and CPython.

COBS (Cheshire & Baker, IEEE/ACM Trans. Networking 1999) removes zeros, so a zero always ends a frame and
a receiver that joins in the middle, or after garbage, is back in step at the next one.
"""

import binascii
import struct

# The largest record, its CRC, COBS' one byte in 254 and its first.
MAX_FRAME_BYTES = 38 + 65535 + 4 + 260


class FramingError(ValueError):
    """Bytes that are no frame: broken COBS or a wrong CRC."""


def cobs_encode(data):
    """``data`` without zeros, one byte longer per 254."""
    out = bytearray()
    block_start = 0
    i = 0
    n = len(data)
    while True:
        if i == n or data[i] == 0:
            out.append(i - block_start + 1)
            out += data[block_start:i]
            if i == n:
                return bytes(out)
            i += 1
            block_start = i
        else:
            i += 1
            if i - block_start == 254:
                out.append(255)
                out += data[block_start:i]
                block_start = i
                if i == n:
                    return bytes(out)


def cobs_decode(data):
    """Inverse of ``cobs_encode``. Raises ``FramingError``."""
    out = bytearray()
    i = 0
    n = len(data)
    if n == 0:
        raise FramingError("cobs: empty frame")
    while i < n:
        code = data[i]
        end = i + code
        if code == 0 or end > n:
            raise FramingError("cobs: a block of %d bytes at %d of %d" % (code, i, n))
        out += data[i + 1 : end]
        i = end
        if code < 255 and i < n:
            out.append(0)
    return bytes(out)


def encode_frame(record_bytes):
    """A record as it goes over a byte stream, closing zero included."""
    crc = struct.pack("<I", binascii.crc32(record_bytes) & 0xFFFFFFFF)
    return cobs_encode(record_bytes + crc) + b"\0"


def decode_frame(frame):
    """Record bytes of a frame without its closing zero. Raises ``FramingError``."""
    data = cobs_decode(frame)
    if len(data) < 4:
        raise FramingError("frame: expected a CRC of 4 bytes, got %d bytes in all" % len(data))
    body = data[:-4]
    if struct.unpack("<I", data[-4:])[0] != binascii.crc32(body) & 0xFFFFFFFF:
        raise FramingError("frame: CRC does not fit its %d bytes" % len(body))
    return body


class Deframer:
    """Records out of a stream of bytes that comes in pieces; what is damaged is counted and passed over."""

    def __init__(self, max_frame_bytes=MAX_FRAME_BYTES):
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes
        self._overlong = False
        self.damaged_frames = 0

    def feed(self, data):
        """Record bytes of every whole, undamaged frame that ``data`` completes, in order."""
        records = []
        start = 0
        data = bytes(data)
        while True:
            end = data.find(b"\0", start)
            piece = data[start:] if end < 0 else data[start:end]
            if len(self._buffer) + len(piece) > self._max_frame_bytes:
                # Nothing that long is a frame: forget it, and everything up to the next zero.
                self._overlong = True
                self._buffer = bytearray()
            elif not self._overlong:
                self._buffer += piece
            if end < 0:
                return records
            self._finish(records)
            start = end + 1

    def _finish(self, records):
        frame = bytes(self._buffer)
        self._buffer = bytearray()
        if self._overlong:
            self._overlong = False
            self.damaged_frames += 1
        elif frame:
            try:
                records.append(decode_frame(frame))
            except FramingError:
                self.damaged_frames += 1
