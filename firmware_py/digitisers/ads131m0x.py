"""Digitiser of ADS131M04 or ADS131M08 converters over SPI, with a trigger input; runs on MicroPython.

Several converters share the bus and the clock, each with a chip select: two ADS131M08 make a device of 14 receivers.
The pins below are a Raspberry Pi Pico's, wired pin by pin in README.md beside this file. Registers and frames are those
of the datasheets SBAS890 (ADS131M04) and SBAS950 (ADS131M08): 24-bit words, most significant byte first, SPI mode 1.

The trigger's rising edge begins a shot: its first sample is the first one after the edge. The shots of one event follow
one another within ``SHOT_TIMEOUT_MS``. Events are counted: all devices of a survey hear the same trigger line, so that
they number events alike. ``edge_us`` is the time of the last edge, by the board's ``time.ticks_us``. A GNSS receiver's
pulse per second, where there is one, dates the edge to the microsecond; which second it begins is the centre's to say.
"""

import struct
import time
from array import array

from machine import SPI, Pin, idle

SPI_BUS, SCLK_PIN, DIN_PIN, DOUT_PIN = 0, 18, 19, 16
SPI_BAUD = 8_000_000
# One chip select per converter; all run on one clock, so the first one's data-ready line serves all.
CS_PINS = (17, 20)
DRDY_PIN = 21
SYNC_PIN = 22
TRIGGER_PIN = 15
# Rising at each UTC second; nothing needs to be wired to it.
PPS_PIN = 14
# Oversampling ratio: the modulator's 4.096 MHz (half of a clock of 8.192 MHz) / 4096 = 1,000 samples a second.
OSR = 4096
# A sample of 24 bits is divided by 2**SHIFT, limited to 16 bits.
SHIFT = 8
# Value of one count of 16 bits in the units that the encoder was trained on; calibrate it with a known signal.
STEP = 1e-3
# Longest waits for the next shot of an event, and for the next sample (one each millisecond).
SHOT_TIMEOUT_MS = 30_000
SAMPLE_TIMEOUT_MS = 100
# A pulse that is further from a second after the one before, by the board's clock, begins a new count.
PPS_TOLERANCE_US = 1000
# Age from which the last pulse dates nothing; the board's clock may be off by so much of a second.
PPS_LATE_US, CLOCK_ERROR_US = 1_500_000, 700_000
# Samples held while a block is companded.
RING_SAMPLES = 64

_NULL, _RESET, _READ, _WRITE = 0x0000, 0x0011, 0xA000, 0x6000
_ID, _CLOCK = 0x00, 0x03
_OSR_CODES = {128: 0, 256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5, 8192: 6, 16256: 7}
_HIGH_RESOLUTION = 2
_WORD_BYTES = 3


class AdcError(OSError):
    """A converter does not answer as it should."""


class Converter:
    """One ADS131M0x behind the chip select ``cs``. Raises ``AdcError`` if it is missing or refuses its settings."""

    def __init__(self, spi, cs, number):
        self._spi = spi
        self._cs = cs
        cs.value(1)
        # Only the ID says the number of channels; until it is read, frames of 8 channels are long enough.
        self._size(8)
        self._command(_RESET)
        time.sleep_ms(1)
        found = self.read_register(_ID)
        self.channels = found >> 8 & 0x0F
        if found >> 12 != 2 or self.channels not in (4, 8):
            raise AdcError(
                "converter %d: expected the ID of an ADS131M04 (24xx) or ADS131M08 (28xx), got %04x; check DOUT, "
                "CS and clock" % (number, found)
            )
        self._size(self.channels)
        clock = (1 << self.channels) - 1 << 8 | _OSR_CODES[OSR] << 2 | _HIGH_RESOLUTION
        self._command(_WRITE | _CLOCK << 7, clock)
        got = self.read_register(_CLOCK)
        if got != clock:
            raise AdcError("converter %d: expected CLOCK %04x, got %04x; check DIN" % (number, clock, got))

    def _size(self, channels):
        # Status, channels, CRC.
        self.frame_bytes = _WORD_BYTES * (channels + 2)
        self._out = bytearray(self.frame_bytes)
        self._in = bytearray(self.frame_bytes)

    def _command(self, command, value=0):
        out = self._out
        for i in range(len(out)):
            out[i] = 0
        struct.pack_into(">H", out, 0, command)
        struct.pack_into(">H", out, _WORD_BYTES, value)
        self._cs.value(0)
        self._spi.write_readinto(out, self._in)
        self._cs.value(1)
        for i in range(len(out)):
            out[i] = 0

    def read_register(self, address):
        """Return a register's value; the converter answers in the next frame."""
        self._command(_READ | address << 7)
        self._command(_NULL)
        return struct.unpack_from(">H", self._in, 0)[0]

    def read_frame(self, into):
        """Fill ``into`` with the newest conversion: status, channels, CRC. Allocates nothing."""
        self._cs.value(0)
        self._spi.write_readinto(self._out, into)
        self._cs.value(1)


class Pulses:
    """Seconds of UTC by the pulses on ``pin``, counted from the first one that a clock has dated."""

    def __init__(self, pin):
        # By ticks_us, the UTC second that it begins (0 if not known), ticks of the second before it. Replaced as a
        # whole, since an interrupt may come at any time.
        self._last = (0, 0, 0)
        pin.irq(self._pulse, Pin.IRQ_RISING)

    def _pulse(self, pin):
        now_us = time.ticks_us()
        at_us, second, _ = self._last
        ticks = time.ticks_diff(now_us, at_us)
        if abs(ticks - 1_000_000) > PPS_TOLERANCE_US:
            self._last = (now_us, 0, 0)
        else:
            self._last = (now_us, second + 1 if second else 0, ticks)

    def date(self, tick_us, clock_us, centre_us):
        """Microseconds since 1970 of ``tick_us`` by ticks_us; 0 while no pulses come.

        ``clock_us`` is the time now, ``centre_us`` the same by a recent answer of the centre, 0 without one. The
        centre's corrects the count.
        """
        at_us, second, ticks = self._last
        age_us = time.ticks_diff(time.ticks_us(), at_us)
        if not ticks or age_us > PPS_LATE_US:
            return 0
        wrong_us = abs(second * 1_000_000 - (centre_us - age_us)) if centre_us else 0
        if not second or wrong_us > CLOCK_ERROR_US:
            second = ((centre_us or clock_us) - age_us + 500_000) // 1_000_000
            self._last = (at_us, second, ticks)
        return second * 1_000_000 + time.ticks_diff(tick_us, at_us) * 1_000_000 // ticks


class Source:
    """Gathers of ``shots`` x ``samples`` x ``receivers``, as ``firmware_py/micropython/source.py`` asks."""

    def __init__(self, shots, samples, receivers):
        spi = SPI(
            SPI_BUS,
            baudrate=SPI_BAUD,
            polarity=0,
            phase=1,
            sck=Pin(SCLK_PIN),
            mosi=Pin(DIN_PIN),
            miso=Pin(DOUT_PIN),
        )
        selects = [Pin(pin, Pin.OUT, value=1) for pin in CS_PINS]
        self._converters = [Converter(spi, cs, number) for number, cs in enumerate(selects)]
        channels = sum([one.channels for one in self._converters])
        if channels < receivers:
            raise AdcError(
                "expected converters of at least %d channels, got %d; add a chip select to CS_PINS"
                % (receivers, channels)
            )
        self.step = STEP
        # Last recorded event; set by the device after a restart.
        self.event = 0
        self.edge_us = 0
        # Samples lost because they were not read in time.
        self.missed = 0
        self.feed = _nothing
        self._samples = samples
        self._receivers = receivers
        frames = [bytearray(one.frame_bytes) for one in self._converters]
        self._frames = [(one.read_frame, frame) for one, frame in zip(self._converters, frames)]
        # (frame, offset) of each receiver.
        self._places = [
            (frame, _WORD_BYTES * (channel + 1))
            for one, frame in zip(self._converters, frames)
            for channel in range(one.channels)
        ][:receivers]
        self._ring = array("h", [0] * (RING_SAMPLES * receivers))
        self._written = 0
        self._read = 0
        self._edges = 0
        self._used_edges = 0
        self._wanted = 0
        self._shot = 0
        self._sample = 0
        # All converters begin a conversion at the same clock.
        sync = Pin(SYNC_PIN, Pin.OUT, value=1)
        sync.value(0)
        sync.value(1)
        self._drdy = Pin(DRDY_PIN, Pin.IN)
        self._drdy.irq(self._ready, Pin.IRQ_FALLING)
        self._trigger = Pin(TRIGGER_PIN, Pin.IN, Pin.PULL_DOWN)
        self._trigger.irq(self._edge, Pin.IRQ_RISING)
        self._pulses = Pulses(Pin(PPS_PIN, Pin.IN, Pin.PULL_DOWN))

    def time_us(self, clock_us, centre_us):
        """Time of the last trigger: by the pulses, else by ``clock_us``, the time now."""
        dated_us = self._pulses.date(self.edge_us, clock_us, centre_us)
        return dated_us or clock_us - time.ticks_diff(time.ticks_us(), self.edge_us)

    def poll(self):
        """True once the trigger has begun the first shot of an event."""
        if self._edges == self._used_edges:
            return False
        self._used_edges += 1
        self.event += 1
        self._shot = 0
        self._sample = 0
        return True

    def read_into(self, block):
        """Fill int16 ``(decimation, receivers)`` with the next samples; False if a shot or samples are missing."""
        receivers = self._receivers
        for at in range(0, len(block), receivers):
            if self._sample == self._samples:
                self._sample = 0
                self._shot += 1
                if not self._next_shot():
                    return False
            if not self._wait_for_sample():
                return False
            start = self._read % RING_SAMPLES * receivers
            for i in range(receivers):
                block[at + i] = self._ring[start + i]
            self._read += 1
            self._sample += 1
        return True

    def _next_shot(self):
        until_ms = time.ticks_add(time.ticks_ms(), SHOT_TIMEOUT_MS)
        while self._edges == self._used_edges:
            if time.ticks_diff(until_ms, time.ticks_ms()) <= 0:
                print("event %d: shot %d did not come" % (self.event, self._shot + 1))
                return False
            self.feed()
            idle()
        self._used_edges += 1
        return True

    def _wait_for_sample(self):
        until_ms = time.ticks_add(time.ticks_ms(), SAMPLE_TIMEOUT_MS)
        while self._written == self._read:
            if time.ticks_diff(until_ms, time.ticks_ms()) <= 0:
                print("event %d: no samples; check DRDY and clock" % self.event)
                return False
            idle()
        if self._written - self._read > RING_SAMPLES:
            self.missed += self._written - self._read - RING_SAMPLES
            print("event %d: %d samples were lost" % (self.event, self.missed))
            return False
        return True

    def _edge(self, pin):
        """Handle the trigger's rising edge: keep samples from here on."""
        if self._wanted > 0:
            # An edge during a shot is contact bounce.
            return
        self.edge_us = time.ticks_us()
        self._read = self._written
        self._wanted = self._samples
        self._edges += 1

    def _ready(self, pin):
        """Handle a conversion: read all converters, and keep the samples of a shot."""
        for read_frame, frame in self._frames:
            read_frame(frame)
        if not self._wanted:
            return
        self._wanted -= 1
        ring = self._ring
        at = self._written % RING_SAMPLES * self._receivers
        for frame, offset in self._places:
            value = frame[offset] << 16 | frame[offset + 1] << 8 | frame[offset + 2]
            if value & 0x800000:
                value -= 0x1000000
            ring[at] = max(-32768, min(32767, value >> SHIFT))
            at += 1
        self._written += 1


def _nothing():
    pass


def open_source(shots, samples, receivers):
    """The digitiser of the pins above. Raises ``AdcError``."""
    return Source(shots, samples, receivers)
