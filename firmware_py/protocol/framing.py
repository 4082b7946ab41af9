"""Records on byte streams (serial, TCP): COBS(record + seal) 0x00; runs on MicroPython and CPython.

The seal is a CRC-32 or a MAC (``seal.py``). COBS (Cheshire & Baker, IEEE/ACM Trans. Networking 1999)
removes zeros, so a zero always ends a frame and a receiver that joins in the middle, or after garbage, is
back in step at the next one.
"""

from firmware_py.errors import FirmwareError
from firmware_py.protocol.frame_authenticator import Crc, SealError, UnauthenticError

# The largest record, its MAC, COBS' one byte in 254 and its first.
MAX_FRAME_BYTES = 38 + 65535 + 8 + 260

CRC = Crc()


class FramingError(FirmwareError):
    """Bytes that are no frame: broken COBS."""


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


def encode_frame(record_bytes, seal=CRC):
    """A record as it goes over a byte stream, closing zero included."""
    return cobs_encode(seal.close(record_bytes)) + b"\0"


def decode_frame(frame, open_seal=CRC.open):
    """Record bytes of a frame without its closing zero. Raises ``FramingError``, ``SealError``."""
    return open_seal(cobs_decode(frame))


class Deframer:
    """Records out of a stream of bytes that comes in pieces; what is damaged is counted and passed over.

    ``open_seal`` takes the bytes of a frame and returns the record's, or raises ``SealError``: a seal's
    ``open``, or, where several devices share a line, a function that looks up whose seal it must be.
    """

    def __init__(self, open_seal=CRC.open, max_frame_bytes=MAX_FRAME_BYTES):
        self._open_seal = open_seal
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes
        self._overlong = False
        self.damaged_frames = 0
        self.unauthentic_frames = 0

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
                records.append(decode_frame(frame, self._open_seal))
            except UnauthenticError:
                self.unauthentic_frames += 1
            except (FramingError, SealError):
                self.damaged_frames += 1
