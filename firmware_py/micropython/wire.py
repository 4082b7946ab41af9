"""Frames in fixed buffers: what ``framing.py`` does, without a byte of heap.

On a device that runs for years, a loop that makes and drops objects ends in a heap of holes. Here frames are
sealed, encoded, read and opened in buffers that were there from the start. Only the seal allocates, and lets go.
"""

from firmware_py.protocol.frame_authenticator import same_bytes

# The longest answer is a refusal: 38 bytes of header, 256 of reason. A longer acknowledgement is passed over,
# and comes again in pieces.
MAX_FRAME_BYTES = 512
CHUNK_BYTES = 64
# Chunks read in one turn, so that a line that never falls silent does not hold up the rest.
CHUNKS = 16


def frame_bytes(sealed_bytes):
    """The longest frame of so many sealed bytes, closing zero included."""
    return sealed_bytes + sealed_bytes // 254 + 2


def frame_into(data, n, out):
    """COBS of the first ``n`` bytes of ``data`` and its closing zero, into ``out``; returns the length."""
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
    """Decode ``n`` bytes of COBS in place, without the closing zero; returns the length, -1 if it is none."""
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
    """Put the seal of the first ``n`` bytes behind them; returns the length with it."""
    buffer[n : n + seal.size] = seal.tag(memoryview(buffer)[:n])
    return n + seal.size


def opened(seal, buffer, n):
    """Length of what was sealed in the first ``n`` bytes, -1 when the seal does not fit it."""
    body = n - seal.size
    if body < 0:
        return -1
    view = memoryview(buffer)
    return body if same_bytes(seal.tag(view[:body]), view[body:n]) else -1


class Inbox:
    """Frames out of ``line``, one at a time, decoded in ``data``; in step again after garbage at the next zero.

    ``line.readinto(buffer)`` returns how many bytes it had, or None, and never waits.
    """

    def __init__(self, line):
        self._line = line
        self._chunk = bytearray(CHUNK_BYTES)
        self._chunk_at = 0
        self._chunk_bytes = 0
        self._held = 0
        self._overlong = False
        self.data = bytearray(MAX_FRAME_BYTES)
        self.damaged = 0

    def poll(self):
        """Length of the next whole frame in ``data``, its seal still on; 0 when none is whole yet."""
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
        if self._held == MAX_FRAME_BYTES:
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
