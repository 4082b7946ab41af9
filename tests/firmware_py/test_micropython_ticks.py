"""The microcontroller's parts over days: its clock of milliseconds comes round after 12.4 of them."""

import itertools

import pytest

from firmware_py.micropython import clock as clock_module
from firmware_py.micropython import health as health_module
from firmware_py.micropython import uart as line_module
from firmware_py.micropython import window as window_module
from firmware_py.micropython.clock import RECENT_MS, Clock
from firmware_py.micropython.health import Health
from firmware_py.micropython.spool import Spool
from firmware_py.micropython.store import FileStore
from firmware_py.micropython.uart import Uart
from firmware_py.micropython.window import Window
from firmware_py.protocol import health_messages as messages
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import decode_health

PERIOD_MS = 1 << 30
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_US = 1_800_000_000_000_000


class Ticks:
    """MicroPython's ``time`` on a board whose clock is not set; ``ms`` goes on as a test says, or by sleeping."""

    def __init__(self):
        self.ms = 12_345

    def ticks_ms(self):
        return self.ms % PERIOD_MS

    def ticks_add(self, ticks_ms, delta_ms):
        return (ticks_ms + delta_ms) % PERIOD_MS

    def ticks_diff(self, a_ms, b_ms):
        return (a_ms - b_ms + PERIOD_MS // 2) % PERIOD_MS - PERIOD_MS // 2

    def sleep_ms(self, ms):
        self.ms += ms

    def time(self):
        return 0


@pytest.fixture
def ticks(monkeypatch):
    found = Ticks()
    for module in (clock_module, health_module, line_module, window_module):
        monkeypatch.setattr(module, "time", found)
    return found


@pytest.mark.parametrize("days", [1, 6, 6.3, 9, 12.4, 13, 20])
def test_after_any_outage_everything_that_waits_is_sent(ticks, tmp_path, days):
    spool = Spool(FileStore(str(tmp_path / "spool.bin"), 8), (0, 1))
    window = Window(spool, 4, 2000)
    for sequence in range(1, 6):
        record = packet.encode_record(packet.Record(packet.LATENT, 0, 1, 5, sequence, payload=b"x" * 8))
        spool.record[: len(record)] = record
        window.recorded(spool.append(len(record)))
    # Sent once each; then the line takes nothing, as with nobody at its other end.
    while (slot := window.due(ticks.ticks_ms())) >= 0:
        window.sent(slot, ticks.ticks_ms())
    ticks.ms += int(days * DAY_MS)
    sent = []
    # 30 s: where a slot seems due just ahead, ticks having come round whole, it is soon due.
    for _ in range(31):
        while (slot := window.due(ticks.ticks_ms())) >= 0:
            window.sent(slot, ticks.ticks_ms())
            spool.forget(slot)
            sent.append(slot)
        ticks.ms += 1000
    assert (sorted(sent), spool.waiting) == ([0, 1, 2, 3, 4], 0)


@pytest.fixture
def clock():
    found = Clock()
    found.heard(NOW_US)
    return found


def health_of(clock, interval_s=60, last_error=""):
    header = packet.Record(packet.LATENT, 0, 1, 5, 0)
    status = (0, 0, 0, 1, None, (5, 1), None, 128)
    return Health(header, "board", interval_s, 256, clock, lambda: status, last_error)


@pytest.mark.parametrize("interval_s", [60, 86_400])
def test_the_clock_goes_on_while_the_centre_is_away_for_weeks(ticks, clock, interval_s):
    health = health_of(clock, interval_s)
    for hours in range(1, 21 * 24):
        ticks.ms += HOUR_MS
        if health.due(ticks.ticks_ms()):
            health.poll()
        if hours % 24 == 11:
            assert clock.now_us() == NOW_US + 1000 * hours * HOUR_MS


def answer_to(question, clock_us):
    asked = packet.decode_record(question)
    return packet.Record(packet.HEALTH, 0, 1, 5, asked.sequence, sample_time_us=clock_us)


def test_an_answer_sets_the_clock_to_the_middle_of_its_way(ticks, clock):
    health = health_of(clock)
    question = health.poll()
    ticks.ms += 40
    assert health.handle(answer_to(question, NOW_US + 70_000_000))
    assert clock.now_us() == NOW_US + 70_020_000


def test_an_answer_that_was_read_late_sets_no_clock(ticks, clock):
    """It is an answer all the same: what it says of the rate counts."""
    health = health_of(clock)
    question = health.poll()
    ticks.ms += 5000
    assert health.handle(answer_to(question, NOW_US))
    assert clock.now_us() == NOW_US + 5_000_000


def test_an_answer_counts_once(ticks, clock):
    health = health_of(clock)
    answer = answer_to(health.poll(), NOW_US)
    ticks.ms += 30
    assert health.handle(answer)
    now_us = clock.now_us()
    ticks.ms += 2000
    assert not health.handle(answer)
    assert clock.now_us() == now_us + 2_000_000
    assert health.handle(answer_to(health.poll(), NOW_US)), "the next question's does"


class FakeUart:
    """Takes bytes as its line carries them; its driver holds ``held_bytes``."""

    def __init__(self, ticks, baud, held_bytes=64):
        self._ticks, self._bytes_per_ms, self._most = ticks, baud / 10_000, held_bytes
        self._held, self._at_ms = 0.0, ticks.ms

    def write(self, buffer, at, n):
        self._held = max(0.0, self._held - (self._ticks.ms - self._at_ms) * self._bytes_per_ms)
        self._at_ms = self._ticks.ms
        taken = min(n, int(self._most - self._held))
        self._held += taken
        return taken


def test_a_slow_line_gets_whole_frames_and_the_watchdog_is_fed_meanwhile(ticks):
    fed_ms = [ticks.ms]
    line = Uart(FakeUart(ticks, 1200), lambda: fed_ms.append(ticks.ms))
    assert line.send(bytes(306), 306)
    assert ticks.ms - fed_ms[0] > 1500, "the frame took long"
    assert max(b - a for a, b in itertools.pairwise(fed_ms)) < 1000


def test_a_line_that_takes_nothing_is_given_up(ticks):
    started_ms = ticks.ms
    assert not Uart(FakeUart(ticks, 0, held_bytes=100), lambda: None).send(bytes(306), 306)
    assert ticks.ms - started_ms < 2 * line_module.GIVE_UP_MS


def test_the_centre_reads_the_last_error_and_how_fresh_its_own_clock_is(ticks, clock):
    for error in ("", "OSError(110,)"):
        health = health_of(clock, last_error=error)
        health.handle(packet.Record(packet.HELLO, 0, 1, 5, packet.decode_record(health.poll()).sequence))
        said = decode_health(packet.decode_record(health.poll()).payload, messages.Health)
        assert (said.last_error or "", said.latent_bytes, said.first_sequence) == (error, 128, 1)
    clock.heard(NOW_US)
    ticks.ms += RECENT_MS // 2
    assert clock.centre_us() == NOW_US + 500 * RECENT_MS
    ticks.ms += RECENT_MS
    assert clock.centre_us() == 0 and clock.now_us() == NOW_US + 1500 * RECENT_MS
