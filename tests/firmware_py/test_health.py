"""What a device says of itself, turn by turn, on a clock of the test's own."""

import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from firmware_py import __version__
from firmware_py.links.base import LinkStatistics
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health, Hello, decode_health, encode_setting
from firmware_py.runtime import health
from firmware_py.runtime.health import (
    CentreRequests,
    HealthHandler,
    HealthSettings,
    board_name,
    disk_free_mib,
    memory_free_mib,
    temperature_mc,
)

T0_US = 1_764_000_000_000_000
STATUS = {"waiting": 4, "dropped": 2, "refused": 0, "next_sequence": 8, "update_version": 5}


class Device:
    """A talker; ``clock_us`` is its own clock, ``now_s`` the time that passes."""

    def __init__(self, folder, monkeypatch, interval_s=60):
        self.now_s = 1000.0
        self.clock_us = T0_US
        monkeypatch.setattr(health, "now_us", lambda: self.clock_us)
        monkeypatch.setattr(health.time, "monotonic", lambda: self.now_s)
        self.link = LinkStatistics(connections=1)
        self.rates = []
        self.asked_again = []
        self.logged = []
        self.header = packet.Record(packet.UPDATE, 3, 1, 9, 0, model_hash=b"12345678")
        self.newest_boots = []
        self.handler = HealthHandler(
            self.header,
            HealthSettings(interval_s, "a board", 10_000, folder),
            self.link,
            lambda: dict(STATUS),
            CentreRequests(self.rates.append, self.number_start, self.asked_again.extend),
            lambda message, **values: self.logged.append((message, values)),
        )

    def number_start(self, newest_boot, centre_us):
        self.newest_boots.append(newest_boot)
        self.header.boot = max(self.header.boot, newest_boot + 1)

    def passes(self, seconds):
        self.now_s += seconds
        self.clock_us += int(seconds * 1e6)

    def poll(self, after_s=0.0):
        self.passes(after_s)
        return self.handler.poll(self.now_s)

    def handle(self, question, centre_us=T0_US, **changes):
        answer = packet.Record(
            question.type, 3, 1, question.boot, question.sequence, sample_time_us=centre_us
        )
        for name, value in changes.items():
            setattr(answer, name, value)
        self.handler.handle(answer, self.now_s)

    def greet(self):
        """Through the first HELLO and its answer to the HEALTH after it."""
        self.handle(self.poll())
        return self.poll()


@pytest.fixture
def device(tmp_path, monkeypatch):
    return lambda **options: Device(tmp_path, monkeypatch, **options)


def test_hello_says_what_runs_and_carries_the_device_and_its_clock(device):
    record = device().poll()
    assert (record.type, record.device, record.survey, record.boot) == (packet.HELLO, 3, 1, 9)
    assert (record.sample_time_us, record.model_hash) == (T0_US, b"12345678")
    assert decode_health(record.payload, Hello) == Hello(__version__, "a board", 60, 10_000, 4, 5)


def test_hello_is_said_until_it_is_answered_and_then_health_comes_at_its_interval(device):
    one = device(interval_s=10)
    said = [one.poll(1.0) for _ in range(40)]
    at_s = [k for k, record in enumerate(said) if record]
    assert [later - earlier for earlier, later in pairwise(at_s)] == [2, 4, 8, 10, 10]
    assert {record.type for record in said if record} == {packet.HELLO}
    one.handle(one.poll(10))
    record = one.poll()
    assert record.type == packet.HEALTH, "at once, with the offset that the answer told"
    assert one.poll(9.9) is None
    assert one.poll(0.1).type == packet.HEALTH


def test_each_answer_of_the_centre_is_logged_once(device):
    one = device()
    hello = one.poll()
    assert one.logged == []
    one.handle(hello, sequence=hello.sequence + 1)
    assert one.logged == []
    one.handle(hello)
    one.handle(hello)
    assert one.logged == [("control_answered", {"type": packet.HELLO})]
    one.handle(one.poll())
    assert one.logged[1:] == [("control_answered", {"type": packet.HEALTH})]


def test_a_new_connection_brings_a_hello(device):
    one = device()
    one.greet()
    assert one.poll(1) is None
    one.link.connections += 1
    assert one.poll().type == packet.HELLO
    assert one.poll(1) is None


def test_health_says_how_the_device_is(device, monkeypatch):
    monkeypatch.setattr(health, "temperature_mc", lambda: 41_250)
    one = device()
    said = decode_health(one.greet().payload, Health)
    assert (said.waiting, said.dropped, said.next_sequence, said.update_version) == (4, 2, 8, 5)
    assert said.temperature_mc == 41_250
    assert said.disk_free_mib > 0


@pytest.mark.parametrize("ahead_us", [0, 2_500_000, -86_400_000_000])
def test_the_offset_of_the_clock_is_found_to_within_half_the_way(device, ahead_us):
    one = device()
    question = one.poll()
    one.passes(0.2)
    centre_us = one.clock_us + ahead_us
    one.passes(0.1)
    one.handle(question, centre_us)
    said = decode_health(one.poll().payload, Health)
    assert said.round_trip_us == pytest.approx(300_000, abs=1)
    assert said.clock_offset_us - ahead_us == pytest.approx(50_000, abs=2), "the way there took longer"


def test_a_clock_that_is_set_meanwhile_does_not_spoil_the_round_trip(device):
    one = device()
    question = one.poll()
    one.passes(0.1)
    one.clock_us += 3_600_000_000
    one.handle(question, T0_US + 50_000)
    said = decode_health(one.poll().payload, Health)
    assert (said.clock_offset_us, said.round_trip_us) == pytest.approx((0, 100_000), abs=2)


def test_an_answer_to_another_question_says_nothing_of_the_clock(device):
    one = device()
    question = one.poll()
    one.handle(question, boot=8)
    one.handle(question, sequence=7)
    one.handle(question, type=packet.UPDATE)
    assert one.poll(2).type == packet.HELLO, "none of them was the answer"
    one.handle(question)
    assert one.poll(4).type == packet.HELLO, "too late: it is the answer to the one before"


def test_an_answer_is_taken_once(device):
    one = device()
    question = one.poll()
    one.handle(question)
    one.passes(10)
    one.handle(question)
    assert decode_health(one.poll().payload, Health).round_trip_us == 0


@pytest.mark.parametrize("centre_us", [0, 1 << 53, (1 << 64) - 1])
def test_a_centre_without_a_clock_is_an_error(device, centre_us):
    one = device()
    with pytest.raises(packet.PacketError, match="clock"):
        one.handle(one.poll(), centre_us)


def test_the_rate_that_the_centre_has_set_comes_with_its_answer(device):
    one = device()
    question = one.poll()
    one.handle(question, payload=encode_setting(32), sequence=7)
    one.handle(question, payload=encode_setting(32), boot=8)
    assert one.rates == [], "not the answer to what was said"
    one.handle(question, payload=encode_setting(32))
    one.handle(question, payload=encode_setting(16))
    assert one.rates == [32], "taken once: what is played again sets nothing"
    one.handle(one.poll())
    assert one.rates == [32], "a centre that says nothing of it"
    with pytest.raises(packet.PacketError, match="setting"):
        one.handle(one.poll(60), payload=b"\x20")
    assert one.rates == [32]


def test_a_boot_that_is_behind_is_said_anew_after_the_newest(device):
    one = device()
    question = one.poll()
    one.handle(question, payload=encode_setting(0, 500))
    assert one.newest_boots == [500]
    again = one.poll()
    assert (again.type, again.boot) == (packet.HELLO, 501)
    one.handle(again)
    assert one.poll().type == packet.HEALTH
    assert one.newest_boots == [500, 0]


def test_the_centre_asks_for_records_once_an_answer(device):
    one = device()
    question = one.greet()
    one.handle(question, payload=encode_setting(0, ranges=[(7, 3, 5), (8, 1, 1)]))
    one.handle(question, payload=encode_setting(0, ranges=[(7, 3, 5)]))
    assert one.asked_again == [(7, 3, 5), (8, 1, 1)]
    one.handle(one.poll(60), payload=encode_setting(64))
    assert len(one.asked_again) == 2


def test_temperatures_are_of_the_hottest_zone_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "THERMAL", tmp_path)
    assert temperature_mc() is None
    for zone, content in enumerate(("41250\n", "38000\n", "-274000\n", "rubbish", "")):
        folder = tmp_path / f"thermal_zone{zone}"
        folder.mkdir()
        (folder / "temp").write_text(content)
    assert temperature_mc() == 41_250


def test_what_the_machine_does_not_tell_is_absent(tmp_path, monkeypatch):
    assert memory_free_mib() > 0
    for content in ("MemTotal: 1 kB\n", "MemAvailable:", "MemAvailable: much kB"):
        (tmp_path / "meminfo").write_text(content)
        monkeypatch.setattr(health, "MEMORY", tmp_path / "meminfo")
        assert memory_free_mib() is None
    assert disk_free_mib(tmp_path / "nowhere") is None


def test_a_board_is_called_what_its_firmware_calls_it(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "BOARD", tmp_path / "model")
    assert board_name(), "the architecture"
    (tmp_path / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.5\0")
    assert board_name() == "Raspberry Pi 4 Model B Rev 1.5"


def test_firmware_and_package_have_one_version():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert __version__ == project["project"]["version"]
