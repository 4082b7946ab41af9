"""The digitiser of ADS131M0x converters under real MicroPython, against converters that the test drives."""

import json
import shutil
from pathlib import Path

import micropython_unix
import pytest

pytestmark = pytest.mark.emulated
STUBS = Path(__file__).parents[1] / "support" / "micropython" / "adc"
DIGITISER = micropython_unix.ROOT / "firmware_py" / "digitisers" / "ads131m0x.py"
SHOTS, SAMPLES, RECEIVERS, THIN = 2, 40, 14, 10
HEAD = f"""
import json, machine
import ads131m0x
from array import array

ads131m0x.SHOT_TIMEOUT_MS = 200
ads131m0x.SAMPLE_TIMEOUT_MS = 50
block = array("h", [0] * {THIN * RECEIVERS})


def gather(source):
    got = []
    for _ in range({SHOTS * SAMPLES // THIN}):
        if not source.read_into(block):
            return None
        got.extend(block)
    return got


def wait_for_event(source):
    while not source.poll():
        machine.idle()
"""


def run(folder, script):
    for path in (*STUBS.glob("*.py"), DIGITISER):
        shutil.copy(path, folder)
    return micropython_unix.run(folder, HEAD + script, path=".:.frozen")


def count(receiver, sample):
    """What the stand-in converts, divided by 256 and limited to 16 bits."""
    return max(-32768, min(32767, (receiver * 100_000 + sample * 256 - 2_000_000) >> 8))


def test_each_shot_begins_with_the_first_conversion_after_its_trigger(tmp_path):
    said = run(
        tmp_path,
        f"""
source = ads131m0x.open_source({SHOTS}, {SAMPLES}, {RECEIVERS})
source.event = 7
machine.script.update({{sample: machine.trigger for sample in (5, 100, 250, 320)}})
# A contact that bounces.
machine.script[103] = machine.trigger
events = []
for _ in range(2):
    wait_for_event(source)
    events.append((source.event, gather(source)))
print(json.dumps(events))
""",
    )
    events = json.loads(said)
    assert [number for number, _ in events] == [8, 9]
    for (_, got), firsts in zip(events, ((5, 100), (250, 320)), strict=True):
        expected = [
            count(receiver, first + sample)
            for first in firsts
            for sample in range(SAMPLES)
            for receiver in range(RECEIVERS)
        ]
        assert got == expected


def test_a_shot_that_does_not_come_and_a_clock_that_stops_break_the_recording_off(tmp_path):
    said = run(
        tmp_path,
        f"""
source = ads131m0x.open_source({SHOTS}, {SAMPLES}, {RECEIVERS})
# A list that grows with each turn would fill the heap of a fast machine.
fed = set()
source.feed = lambda: fed.add(1)
machine.script[3] = machine.trigger
wait_for_event(source)
print(gather(source), len(fed) > 0)
machine.script[machine.samples + 2] = machine.trigger
wait_for_event(source)
machine.clocked = False
print(gather(source))
""",
    )
    assert said.splitlines() == [
        "event 1: shot 2 did not come",
        "None True",
        "event 2: no samples; check DRDY and clock",
        "None",
    ]


def test_samples_that_could_not_be_read_in_time_are_told(tmp_path):
    said = run(
        tmp_path,
        f"""
source = ads131m0x.open_source(1, 400, {RECEIVERS})
machine.script[3] = machine.trigger
for _ in range(200):
    machine.idle()
source.poll()
print(source.read_into(block))
""",
    )
    assert said.splitlines() == ["event 1: 133 samples were lost", "False"]


@pytest.mark.parametrize(
    ("change", "receivers", "said"),
    [
        (
            "machine.IDS[20] = 0xFFFF",
            14,
            "converter 1: expected the ID of an ADS131M04 (24xx) or ADS131M08 (28xx), got ffff",
        ),
        ("machine.IDS[20] = 0x2400", 14, "expected converters of at least 14 channels, got 12"),
        (
            "machine.Chip.exchange = machine.Chip.deaf",
            14,
            "converter 0: expected CLOCK ff16, got 0f0e; check DIN",
        ),
    ],
)
def test_a_converter_that_is_not_there_or_does_not_listen_is_named(tmp_path, change, receivers, said):
    told = run(
        tmp_path,
        f"""
def deaf(chip, out, into, exchange=machine.Chip.exchange):
    exchange(chip, out, into)
    chip.registers[3] = 0x0F0E
machine.Chip.deaf = deaf
{change}
try:
    ads131m0x.open_source({SHOTS}, {SAMPLES}, {receivers})
except ads131m0x.AdcError as error:
    print(error)
""",
    )
    assert told.startswith(said)


def test_two_small_converters_make_eight_channels(tmp_path):
    said = run(
        tmp_path,
        f"""
machine.IDS.update({{17: 0x2400, 20: 0x2400}})
source = ads131m0x.open_source(1, {THIN}, 8)
block = array("h", [0] * {THIN * 8})
machine.script[3] = machine.trigger
wait_for_event(source)
source.read_into(block)
print(list(block[:8]))
""",
    )
    # Channels 0 to 3 of each; the stand-in counts the second from 8 on.
    assert json.loads(said) == [count(receiver, 3) for receiver in (0, 1, 2, 3, 8, 9, 10, 11)]


# A board whose oscillator is 100 ppm fast, and pulses at whole seconds of UTC.
PULSES = f"""
import time
now_us = 1 << 30
FAST = 100
UTC_S = 1_800_000_000


class Time:
    ticks_ms = time.ticks_ms
    ticks_add = time.ticks_add
    sleep_ms = time.sleep_ms

    @staticmethod
    def ticks_us():
        return (now_us + now_us * FAST // 1_000_000) % (1 << 30)

    @staticmethod
    def ticks_diff(a, b):
        # As on a board of 32 bits, where ticks come round.
        return (a - b + (1 << 29)) % (1 << 30) - (1 << 29)


ads131m0x.time = Time
source = ads131m0x.open_source(1, {SAMPLES}, {RECEIVERS})
started_us = now_us


def at(us, what=None):
    # The time is `us` after the first pulse.
    global now_us
    now_us = started_us + us
    if what:
        what()


def pulse():
    machine.pins[14].handler(machine.pins[14])


def edge():
    source._wanted = 0
    machine.trigger()


def utc(us):
    return UTC_S * 1_000_000 + us


def off(us, clock_us, centre_us=0):
    # How far the last trigger, `us` after the first pulse, is dated wrongly.
    return source.time_us(clock_us, centre_us) - utc(us)
"""


def test_pulses_date_a_trigger_to_the_microsecond_whatever_the_clocks_say(tmp_path):
    said = run(
        tmp_path,
        PULSES
        + """
found = []
at(0, pulse)
at(1_000_000, pulse)
at(1_250_000, edge)
at(1_260_000)
# The board's clock is 0.4 s behind, the centre not heard: the second is right.
found.append(off(1_250_000, utc(860_000)))
# Counted on, with a clock that has drifted by seconds.
for second in range(2, 2000):
    at(second * 1_000_000, pulse)
at(1_999_900_000, edge)
at(1_999_950_000)
found.append(off(1_999_900_000, utc(1_990_000_000)))
# What the centre says counts.
found.append(off(1_999_900_000, utc(1_990_000_000), utc(1_996_950_000)) + 3_000_000)
print(json.dumps(found))
""",
    )
    assert all(abs(us) <= 2 for us in json.loads(said)), said


def test_without_pulses_the_clock_dates_a_trigger_by_its_age(tmp_path):
    said = run(
        tmp_path,
        PULSES
        + """
found = []
at(0, edge)
at(3_000)
found.append(off(0, utc(3_000)))
# One pulse calibrates nothing, and after a missing one the count begins anew.
at(500_000, pulse)
at(600_000, edge)
at(601_000)
found.append(off(600_000, utc(601_000)))
for us in (1_500_000, 2_500_000):
    at(us, pulse)
source.time_us(utc(2_500_000), 0)
at(4_500_000, pulse)
at(4_600_000, edge)
found.append(off(4_600_000, utc(4_600_000)))
# Nor does one that is old.
at(5_500_000, pulse)
at(9_000_000, edge)
found.append(off(9_000_000, utc(9_000_000)))
print(json.dumps(found))
""",
    )
    assert all(abs(us) <= 2 for us in json.loads(said)), said
