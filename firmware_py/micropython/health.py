"""Send HELLO until answered, then HEALTH at intervals, in the format of ``health_messages.py``.

Unknown fields (temperature, disk, whole MiB of memory, updates) and numbers that are too large are null.
"""

import struct
import time

from firmware_py import __version__
from firmware_py.protocol import packet

RETRY_MS = 2000
# Maximum round trip; a slower answer waited behind a recording, and half of it would be the clock's error.
ROUND_TRIP_MAX_MS = 3000


class Health:
    """Health reports of a microcontroller.

    ``status()`` returns, in this order: waiting, dropped, refused, next_sequence, acknowledged (boot, sequence) or
    None, the first that waits (boot, sequence), encode_us or None, bytes of a latent. ``last_error`` is that with which
    an earlier start ended, "" for none.
    """

    def __init__(self, header, board, interval_s, spool_records, clock, status, last_error=""):
        self._header = header
        self._board = board
        self._interval_s = interval_s
        self._spool_records = spool_records
        self._clock = clock
        self._status = status
        self._last_error = last_error
        self._known = False
        self._asking = False
        self._sequence = 0
        self._asked_ms = time.ticks_ms()
        self._asked_us = 0
        self._wait_ms = 0
        self._retry_ms = RETRY_MS
        self._offset_us = None
        self._round_trip_us = None
        # Seconds, accumulated per pass: ticks_ms wraps around after days.
        self._up_s = 0
        self._second_ms = self._asked_ms

    def due(self, now_ms):
        """Return True if a record is due."""
        while time.ticks_diff(now_ms, self._second_ms) >= 1000:
            self._second_ms = time.ticks_add(self._second_ms, 1000)
            self._up_s += 1
        return time.ticks_diff(now_ms, self._asked_ms) >= self._wait_ms

    def poll(self):
        """Return the record to send, as bytes; one that cannot be sent is repeated, or replaced by a newer one."""
        self._sequence += 1
        self._asking = True
        self._asked_ms = time.ticks_ms()
        self._asked_us = self._clock.now_us()
        waiting, dropped, refused, next_sequence, acknowledged, first, encode_us, latent_bytes = (
            self._status()
        )
        if self._known:
            self._wait_ms = 1000 * self._interval_s
            kind = packet.HEALTH
            content = [self._interval_s, self._up_s, waiting, dropped, refused, next_sequence]
            content += acknowledged or (None, None)
            content += first
            content += [encode_us, None, None, None, self._offset_us, self._round_trip_us]
            content += [None, None, latent_bytes]
            if self._last_error:
                content += [None] * 5 + [self._last_error]
        else:
            self._wait_ms = min(self._retry_ms, 1000 * self._interval_s)
            self._retry_ms = min(2 * self._retry_ms, 1000 * self._interval_s)
            kind = packet.HELLO
            content = [__version__, self._board, self._interval_s, self._spool_records, waiting]
        header = self._header
        return packet.encode_record(
            packet.Record(
                kind,
                header.device,
                header.survey,
                header.boot,
                self._sequence,
                sample_time_us=self._asked_us,
                model_hash=header.model_hash,
                payload=cbor(content),
            )
        )

    def handle(self, record):
        """Set the clock from the centre's answer to this boot; return False if the answer is invalid or a repeat."""
        if not self._asking or record.sequence != self._sequence or record.sample_time_us >= 1 << 53:
            return False
        self._asking = False
        round_trip_ms = time.ticks_diff(time.ticks_ms(), self._asked_ms)
        if round_trip_ms <= ROUND_TRIP_MAX_MS:
            self._round_trip_us = 1000 * round_trip_ms
            now_us = record.sample_time_us + self._round_trip_us // 2
            # A device whose clock is the centre's has no offset to report.
            if self._clock.set_s():
                self._offset_us = now_us - self._asked_us - self._round_trip_us
            self._clock.heard(now_us)
        if record.type == packet.HELLO:
            self._known = True
            self._wait_ms = 0
        return True


def cbor(values):
    """Encode a list of integers, short texts and None as CBOR (RFC 8949)."""
    out = bytearray(head(0x80, len(values)))
    for value in values:
        if value is None:
            out.append(0xF6)
        elif isinstance(value, str):
            text = value.encode()[:64]
            out += head(0x60, len(text))
            out += text
        else:
            out += head(0x00, value) if value >= 0 else head(0x20, -1 - value)
    return bytes(out)


def head(major, value):
    if value < 24:
        return bytes([major | value])
    if value < 1 << 8:
        return struct.pack(">BB", major | 24, value)
    if value < 1 << 16:
        return struct.pack(">BH", major | 25, value)
    if value < 1 << 32:
        return struct.pack(">BI", major | 26, value)
    return struct.pack(">BQ", major | 27, value)
