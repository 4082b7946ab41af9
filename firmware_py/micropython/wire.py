"""Frame records in fixed buffers, as ``framing.py`` does, without heap allocation.

A loop that allocates objects for years fragments the heap. Here frames are sealed, encoded, read and opened in buffers
allocated at the start. Only the authenticator allocates, and frees its memory.
"""

from firmware_py.protocol.frame_authenticator import same_bytes

# Longest answer: a refusal with 38 bytes of header and 256 of reason. A longer acknowledgement is skipped and arrives
# again in pieces.
MAX_FRAME_BYTES = 512
# Longest frame of a device that takes updates: an offer with its statement and signature.
OFFER_BYTES = 2048
CHUNK_BYTES = 64
# Maximum chunks read per pass; a busy line must not block the rest.
CHUNKS = 16


def frame_bytes(sealed_bytes):
    """Return the maximum frame length for this many sealed bytes, including the closing zero."""
    return sealed_bytes + sealed_bytes // 254 + 2


def frame_into(data, n, out):
    """Write the COBS of the first ``n`` bytes of ``data`` and a closing zero into ``out``; return the length."""
    code_at = 0
    at = 1
    for i in range(n):
        byte = data[i]
        if byte:
            out[at] = byte
            at += 1
            if at - code_at < 255:
                continue
            out[code_at] = 255
            if i == n - 1:
                # A full block at the end has no empty one after it.
                out[at] = 0
                return at + 1
        else:
            out[code_at] = at - code_at
        code_at = at
        at += 1
    out[code_at] = at - code_at
    out[at] = 0
    return at + 1


def unframe(buffer, n):
    """Decode ``n`` bytes of COBS in place, without the closing zero; return the length, or -1 if invalid."""
    if n == 0:
        return -1
    i = 0
    at = 0
    while i < n:
        code = buffer[i]
        end = i + code
        if code == 0 or end > n:
            return -1
        i += 1
        while i < end:
            buffer[at] = buffer[i]
            at += 1
            i += 1
        if code < 255 and i < n:
            buffer[at] = 0
            at += 1
    return at


def seal_into(seal, buffer, n):
    """Append the seal of the first ``n`` bytes; return the total length."""
    buffer[n : n + seal.size] = seal.tag(memoryview(buffer)[:n])
    return n + seal.size


def opened(seal, buffer, n):
    """Return the length of the record in the first ``n`` bytes, or -1 if the seal does not match."""
    body = n - seal.size
    if body < 0:
        return -1
    view = memoryview(buffer)
    return body if same_bytes(seal.tag(view[:body]), view[body:n]) else -1


class Inbox:
    """Read frames from ``line`` one at a time, decoded in ``data``; back in step at the next zero after garbage.

    ``line.readinto(buffer)`` never blocks; it returns the number of bytes, or None.
    """

    def __init__(self, line, max_frame_bytes=MAX_FRAME_BYTES):
        self._line = line
        self._chunk = bytearray(CHUNK_BYTES)
        self._chunk_at = 0
        self._chunk_bytes = 0
        self._held = 0
        self._overlong = False
        self.data = bytearray(max_frame_bytes)
        self.damaged = 0

    def poll(self):
        """Return the length of the next frame in ``data``, including its seal; 0 if none is complete yet."""
        for _ in range(CHUNKS):
            while self._chunk_at < self._chunk_bytes:
                byte = self._chunk[self._chunk_at]
                self._chunk_at += 1
                if byte:
                    self._hold(byte)
                elif n := self._finish():
                    return n
            self._chunk_at = 0
            self._chunk_bytes = self._line.readinto(self._chunk) or 0
            if not self._chunk_bytes:
                return 0
        return 0

    def _hold(self, byte):
        if self._held == len(self.data):
            self._overlong = True
        else:
            self.data[self._held] = byte
            self._held += 1

    def _finish(self):
        held = self._held
        self._held = 0
        if held == 0:
            return 0
        n = -1 if self._overlong else unframe(self.data, held)
        self._overlong = False
        if n <= 0:
            self.damaged += 1
            return 0
        return n
