"""Frame records on byte streams (serial, TCP): COBS(record + seal) 0x00; runs on MicroPython and CPython.

The seal is a CRC-32 or a MAC (``frame_authenticator.py``). COBS (Cheshire & Baker, IEEE/ACM Trans. Networking 1999)
removes zeros, so a zero always ends a frame. A receiver that joins midway or reads garbage is back in step at the next
zero.
"""

from firmware_py.errors import FirmwareError
from firmware_py.protocol.frame_authenticator import Crc, SealError, UnauthenticError

# Largest frame: the largest record, its MAC, and COBS' overhead of one byte per 254 and a first one.
MAX_FRAME_BYTES = 38 + 65535 + 8 + 260

CRC = Crc()


class FramingError(FirmwareError):
    """The bytes are not valid COBS."""


def cobs_encode(data):
    """Encode ``data`` without zeros; one byte longer, and one more per 254 bytes."""
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
    """Invert ``cobs_encode``.

    Raises:
        FramingError: The bytes are not valid COBS.
    """
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


def encode_frame(record_bytes, seal=CRC):
    """Return a record's frame, including the closing zero."""
    return cobs_encode(seal.close(record_bytes)) + b"\0"


def decode_frame(frame, open_seal=CRC.open):
    """Return the record's bytes of a frame without its closing zero.

    Raises:
        FramingError: The bytes are not valid COBS.
        SealError: The seal does not match.
    """
    return open_seal(cobs_decode(frame))


class Deframer:
    """Extract records from a stream that arrives in pieces; damaged frames are counted and skipped.

    ``open_seal`` takes a frame's bytes and returns the record's bytes, or raises ``SealError``. It is an
    authenticator's ``open``, or a function that finds the sender's authenticator if several devices share a line.
    """

    def __init__(self, open_seal=CRC.open, max_frame_bytes=MAX_FRAME_BYTES):
        self._open_seal = open_seal
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes
        self._overlong = False
        self.damaged_frames = 0
        self.unauthentic_frames = 0

    def feed(self, data):
        """Return the record's bytes of each valid frame that ``data`` completes, in order."""
        records = []
        start = 0
        data = bytes(data)
        while True:
            end = data.find(b"\0", start)
            piece = data[start:] if end < 0 else data[start:end]
            if len(self._buffer) + len(piece) > self._max_frame_bytes:
                # Longer than any frame: discard everything up to the next zero.
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
                records.append(decode_frame(frame, self._open_seal))
            except UnauthenticError:
                self.unauthentic_frames += 1
            except (FramingError, SealError):
                self.damaged_frames += 1
