"""A serial line of two pseudo-terminals: both ways, paced, with wrong bits, and with the cable out."""

import time
from contextlib import closing

import pytest
import serial
from waiting import wait_until

from testbed.emulation.serial_emulator import EmulatedSerial

TIMEOUT_S = 20.0


@pytest.fixture
def ports():
    """Opens both ends: ``line, device, centre = ports(baud=...)``."""
    opened = []

    def open_ports(**settings):
        line = EmulatedSerial(**settings)
        opened.append(line)
        ends = [serial.Serial(path, timeout=TIMEOUT_S) for path in (line.device_path, line.centre_path)]
        opened.extend(ends)
        return line, *ends

    yield open_ports
    for thing in reversed(opened):
        thing.close()


def test_every_byte_passes_both_ways(ports):
    _, device, centre = ports(baud=1_000_000)
    data = bytes(range(256)) * 4
    device.write(data)
    assert centre.read(len(data)) == data
    centre.write(data)
    assert device.read(len(data)) == data


def test_bytes_take_their_time_at_the_baud_rate(ports):
    _, device, centre = ports(baud=19_200)
    started_s = time.monotonic()
    device.write(bytes(960))
    assert len(centre.read(960)) == 960
    assert time.monotonic() - started_s > 0.49, "no sooner than ten bits a byte at that rate"


def test_bits_go_wrong_and_are_counted(ports):
    line, device, centre = ports(baud=1_000_000, bit_error_rate=0.01)
    device.write(bytes(2_000))
    wrong = sum(byte.bit_count() for byte in centre.read(2_000))
    assert 80 < wrong < 240
    assert line.bit_errors == wrong


def test_with_the_cable_out_bytes_are_lost_and_later_ones_pass(ports):
    line, device, centre = ports(baud=1_000_000)
    line.up.swallow = line.down.swallow = True
    device.write(b"lost")
    wait_until(lambda: line.swallowed_bytes == 4, what="the loss")
    line.up.swallow = line.down.swallow = False
    device.write(b"found")
    assert centre.read(5) == b"found"


def test_a_process_may_close_its_port_and_open_it_again(ports):
    line, device, centre = ports(baud=1_000_000)
    centre.close()
    device.write(b"to nobody")
    with closing(serial.Serial(line.centre_path, timeout=TIMEOUT_S)) as again:
        device.write(b"|to the next")
        assert again.read_until(b"|")[-1:] == b"|"
        assert again.read(11) == b"to the next"
