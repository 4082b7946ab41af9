"""Run the device's loop: record, encode, spool, send, and repeat until acknowledged.

It does the same as ``firmware_py/runtime/node.py`` on Linux, in fixed buffers. A pass without a recording allocates
nothing. A record allocates its MAC, its numbers above 2**30 and the runtime's result, and frees them.
"""

import struct
import time

from firmware_py.micropython.rate import pack_into
from firmware_py.micropython.spool import MAX_RECORD_BYTES
from firmware_py.micropython.wire import MAX_FRAME_BYTES, Inbox, frame_bytes, frame_into, opened, seal_into
from firmware_py.protocol import packet

IDLE_MS = 5
# Maximum frames read per pass; a busy line must not block recording or the watchdog.
HEARD_FRAMES = 16
# Offsets of boot and sequence in a record.
_BOOT_AT = 8
_SEQUENCE_AT = 12

# CBOR of `recording_messages.py`: the start of a request, and the answer {"none": {"reason": ...}}.
_FETCH = b"\xa1\x65fetch"
_NO_RECORDING = b"\xa1\x64none\xa1\x66reason\x78\x25a microcontroller keeps no recordings"


class Device:
    """Device.

    Args:
        header: Record with this device's device, survey, boot and model hash.
        seals: Its two frame authenticators.
        rates: Rates of the model (``rate.rates_of``).
    """

    # Large: one parameter for each part of a device; an object that holds them takes heap.
    def __init__(
        self,
        header,
        seals,
        compander,
        model,
        rates,
        source,
        spool,
        window,
        line,
        clock,
        feed,
        max_frame_bytes=MAX_FRAME_BYTES,
    ):
        self._header = header
        self._up, self._down = seals
        self._compander = compander
        self._model = model
        self._rates = rates
        self._rate = rates[0]
        self._set_bytes = 0
        self._source = source
        self._spool = spool
        self._window = window
        self._line = line
        self._clock = clock
        self._feed = feed
        self._inbox = Inbox(line, max_frame_bytes)
        self._latent = bytearray(model.latent)
        # One buffer for an outgoing sealed record, one for its frame.
        self._sealed = bytearray(MAX_RECORD_BYTES + self._up.size)
        self._frame = bytearray(frame_bytes(len(self._sealed)))
        self._owner = struct.pack("<HH", header.device, header.survey)
        self._sequence = 0
        self._refused = 0
        self._acknowledged = None
        self._encode_us = None
        self.health = None
        self.updater = None
        # Called when the centre has answered this start, and with the error that ends it.
        self.answered = None
        self.failed = None

    def turn(self):
        """Run one pass of the loop; return False if there was nothing to do."""
        busy = False
        if self._source.poll():
            self._record()
            busy = True
        now_ms = time.ticks_ms()
        slot = self._window.due(now_ms)
        if slot >= 0:
            busy = True
            self._send_slot(slot, now_ms)
        if self.health and self.health.due(now_ms):
            data = self.health.poll()
            self._sealed[: len(data)] = data
            if self._send(len(data)):
                # The installation waits for this line.
                kind = "hello" if data[3] == packet.HELLO else "health"
                print("epic: %s sent, %d records wait" % (kind, self._spool.waiting))
        if self.updater and self.updater.due(now_ms):
            data = self.updater.poll()
            self._sealed[: len(data)] = data
            self._send(len(data))
        for _ in range(HEARD_FRAMES):
            n = self._inbox.poll()
            if not n:
                break
            self._hear(n)
            busy = True
        return busy

    def run(self, for_s=None):
        """Turn for ever, or for so many seconds."""
        until_ms = time.ticks_add(time.ticks_ms(), 1000 * (for_s or 0))
        while for_s is None or time.ticks_diff(until_ms, time.ticks_ms()) > 0:
            self._feed()
            if not self.turn():
                time.sleep_ms(IDLE_MS)

    def status(self):
        """Return the fields that ``health`` reports."""
        key = (self._header.boot, self._sequence + 1)
        first = self._spool.first_key() or key
        spool = self._spool
        return (
            spool.waiting,
            spool.dropped,
            self._refused,
            key[1],
            self._acknowledged,
            first,
            self._encode_us,
            self._rate[0],
        )

    @property
    def last_error(self):
        """The error with which an earlier start ended, "" for none."""
        return self._spool.last_error

    def set_rate(self, latent_bytes):
        """Set the length of latents in bytes from the next recording on; 0 sends whole latents."""
        if latent_bytes == self._set_bytes:
            return
        self._set_bytes = latent_bytes
        self._rate = self._rates[0]
        for rate in self._rates:
            if rate[0] == latent_bytes:
                self._rate = rate
        if latent_bytes and latent_bytes != self._rate[0]:
            print("rate: the centre has set latents of %d bytes, which this model has not" % latent_bytes)

    def _record(self):
        event = self._source.event
        sample_time_us = self._clock.now_us()
        if sample_time_us and hasattr(self._source, "time_us"):
            sample_time_us = self._source.time_us(sample_time_us, self._clock.centre_us())
        self._compander.set_step(self._source.step)
        if not self._compander.fill(self._source, self._feed):
            print("event %d: the recording broke off" % event)
            return
        started_ms = time.ticks_ms()
        self._model.encode(self._latent)
        self._encode_us = 1000 * time.ticks_diff(time.ticks_ms(), started_ms)
        self._sequence += 1
        header = self._header
        record = self._spool.record
        payload_bytes = pack_into(self._latent, self._rate, record, packet.HEADER_BYTES)
        struct.pack_into(
            packet.HEADER,
            record,
            0,
            packet.MAGIC,
            packet.VERSION,
            packet.LATENT,
            header.device,
            header.survey,
            header.boot,
            self._sequence,
            event,
            sample_time_us,
            header.model_hash,
            payload_bytes,
        )
        self._window.recorded(self._spool.append(packet.HEADER_BYTES + payload_bytes))

    def _send_slot(self, slot, now_ms):
        size = self._spool.read(slot)
        if not size:
            return
        for i in range(size):
            self._sealed[i] = self._spool.record[i]
        self._send(size)
        # A line that accepts nothing is treated like one that loses it: send again later.
        self._window.sent(slot, now_ms)

    def _send(self, size):
        n = frame_into(self._sealed, seal_into(self._up, self._sealed, size), self._frame)
        return self._line.send(self._frame, n)

    def _hear(self, n):
        """Handle messages from the centre; skip those that are damaged or for another device."""
        data = self._inbox.data
        n = opened(self._down, data, n)
        if n < packet.HEADER_BYTES or n != packet.HEADER_BYTES + (data[36] | data[37] << 8):
            return
        if data[0:2] != packet.MAGIC or data[2] != packet.VERSION or data[4:8] != self._owner:
            return
        if self.answered:
            self.answered()
        kind = data[3]
        if kind == packet.UPDATE and self.updater:
            self.updater.handle(packet.decode_record(memoryview(data)[:n]))
        if kind == packet.ACK:
            self._acknowledge(data, _SEQUENCE_AT)
            for at in range(packet.HEADER_BYTES, n - 3, 4):
                self._acknowledge(data, at)
        elif kind == packet.REFUSAL:
            if self._forget(data, _SEQUENCE_AT):
                self._refused += 1
                print("refused: %s" % bytes(data[packet.HEADER_BYTES : n]).decode())
        elif kind == packet.RECORDING:
            self._send_no_recording(data)
        elif kind in (packet.HELLO, packet.HEALTH) and self.health:
            record = packet.decode_record(memoryview(data)[:n])
            if record.boot == self._header.boot and self.health.handle(record) and len(record.payload) >= 2:
                self.set_rate(record.payload[0] | record.payload[1] << 8)

    def _send_no_recording(self, data):
        """Answer a request for a recording; other messages about recordings need no answer."""
        if data[packet.HEADER_BYTES : packet.HEADER_BYTES + len(_FETCH)] != _FETCH:
            return
        n = packet.HEADER_BYTES
        self._sealed[:n] = data[:n]
        self._sealed[n : n + len(_NO_RECORDING)] = _NO_RECORDING
        struct.pack_into("<I", self._sealed, _BOOT_AT, self._header.boot)
        struct.pack_into("<H", self._sealed, n - 2, len(_NO_RECORDING))
        self._send(n + len(_NO_RECORDING))

    def _acknowledge(self, data, sequence_at):
        if self._forget(data, sequence_at):
            self._acknowledged = struct.unpack_from("<I", data, _BOOT_AT) + struct.unpack_from(
                "<I", data, sequence_at
            )

    def _forget(self, data, sequence_at):
        slot = self._spool.find(data, _BOOT_AT, data, sequence_at)
        if slot < 0:
            return False
        self._spool.forget(slot)
        return True
