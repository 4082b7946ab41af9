"""Stand-in for ``machine`` with ADS131M0x converters on its SPI bus; ``idle`` lets the next conversion come.

A conversion of converter k, channel c, sample t is ``value(k, c, t)``. ``script`` says what happens before a
conversion: {sample: function}.
"""

import struct

IDS = {17: 0x2800, 20: 0x2800}
pins = {}
script = {}
samples = 0
# Conversions come in ``idle`` while True.
clocked = True


def value(number, channel, sample):
    return (number * 8 + channel) * 100_000 + sample * 256 - 2_000_000


class Pin:
    IN, OUT, PULL_DOWN = 0, 1, 2
    IRQ_FALLING, IRQ_RISING = 1, 2

    def __init__(self, number, mode=None, pull=None, value=0):
        self.number = number
        self.level = value
        self.handler = None
        pins[number] = self

    def value(self, level):
        self.level = level

    def irq(self, handler, trigger):
        self.handler = handler


class Chip:
    def __init__(self, number, pin):
        self.number = number
        self.pin = pin
        self.registers = {0: IDS[pin], 3: 0x0F0E}
        self.answer = 0

    def exchange(self, out, into):
        channels = self.registers[0] >> 8 & 15
        for i in range(len(into)):
            into[i] = 0
        struct.pack_into(">H", into, 0, self.answer)
        for channel in range(min(channels, len(into) // 3 - 2)):
            word = value(self.number, channel, samples - 1) & 0xFFFFFF
            at = 3 * (channel + 1)
            into[at], into[at + 1], into[at + 2] = word >> 16, word >> 8 & 255, word & 255
        command, written = struct.unpack_from(">H", out, 0)[0], struct.unpack_from(">H", out, 3)[0]
        self.answer = 0x0500
        if command >> 13 == 5:
            self.answer = self.registers.get(command >> 7 & 63, 0)
        elif command >> 13 == 3:
            self.registers[command >> 7 & 63] = written


class SPI:
    def __init__(self, bus, baudrate, polarity, phase, sck, mosi, miso):
        assert (polarity, phase) == (0, 1)
        self.chips = [Chip(number, pin) for number, pin in enumerate(sorted(IDS))]

    def write_readinto(self, out, into):
        chosen = [chip for chip in self.chips if pins[chip.pin].level == 0]
        assert len(chosen) == 1, "one chip select at a time"
        chosen[0].exchange(out, into)


def idle():
    global samples
    if not clocked:
        return
    if samples in script:
        script[samples]()
    samples += 1
    pins[21].handler(pins[21])


def trigger():
    pins[15].handler(pins[15])
