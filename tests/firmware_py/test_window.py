"""What is sent next: fresh records before a backlog, and both again until they are answered."""

import pytest

from firmware_py.storage import window as module
from firmware_py.storage.spool import Spool
from firmware_py.storage.window import FRESH_S, RESEND_MAX_S, Window

RESEND_S = 1.0


class Clock:
    """``time.monotonic`` by hand."""

    def __init__(self, monkeypatch):
        self.now_s = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def spool(tmp_path):
    """Twenty records of an earlier boot."""
    earlier = Spool(tmp_path / "spool.sqlite", 100)
    for _ in range(20):
        earlier.append(earlier.next_sequence(), b"old")
    earlier.close()
    return Spool(tmp_path / "spool.sqlite", 100)


def record(spool, window):
    sequence = spool.next_sequence()
    spool.append(sequence, b"new")
    window.recorded(sequence)


def send(window, most=100):
    """Send what is due, as a link that takes ``most``: (boot, sequence) of each."""
    gone = []
    for spooled in window.due():
        if len(gone) == most:
            break
        window.sent(spooled)
        gone.append((spooled.boot, spooled.sequence))
    return gone


def test_a_backlog_goes_oldest_first_and_leaves_a_quarter_of_the_window_to_fresh_records(spool, clock):
    window = Window(spool, 8, RESEND_S)
    assert send(window) == [(1, n) for n in range(1, 7)]
    for _ in range(3):
        record(spool, window)
    assert send(window) == [(2, 1), (2, 2)], "though nothing of the backlog is answered"


def test_a_line_that_takes_one_record_at_a_time_takes_the_fresh_one(spool, clock):
    window = Window(spool, 8, RESEND_S)
    assert send(window, most=1) == [(1, 1)]
    record(spool, window)
    assert send(window, most=1) == [(2, 1)]
    assert send(window, most=1) == [(1, 2)]


def test_a_record_is_fresh_for_ten_seconds(spool, clock):
    window = Window(spool, 8, RESEND_S)
    record(spool, window)
    clock.now_s += FRESH_S + 1
    assert send(window) == [(1, n) for n in range(1, 7)]


def test_a_window_of_one_record_carries_both(spool, clock):
    window = Window(spool, 1, RESEND_S)
    record(spool, window)
    assert send(window) == [(2, 1)]
    spool.acknowledge(2, (1,))
    window.answered(2, 1)
    assert send(window) == [(1, 1)]


def test_an_answer_makes_room_for_the_next(spool, clock):
    window = Window(spool, 4, RESEND_S)
    assert send(window) == [(1, 1), (1, 2), (1, 3)]
    spool.acknowledge(1, (2,))
    window.answered(1, 2)
    assert send(window) == [(1, 4)]


def test_what_has_no_answer_goes_again_ever_later(spool, clock):
    window = Window(spool, 1, RESEND_S)
    (spooled,) = window.due()
    assert not window.sent(spooled)
    waits_s = []
    for _ in range(8):
        before_s = clock.now_s
        while not list(window.due()):
            clock.now_s += 0.01
        waits_s.append(clock.now_s - before_s)
        assert window.sent(spooled)
    longest_s = [min(RESEND_S * 2**n, RESEND_MAX_S) for n in range(8)]
    for wait_s, most_s in zip(waits_s, longest_s, strict=True):
        assert 0.75 * most_s - 0.02 <= wait_s <= most_s + 0.02
    assert {round(wait_s / most_s, 3) for wait_s, most_s in zip(waits_s, longest_s, strict=True)} != {1.0}


def test_what_a_full_spool_dropped_is_not_waited_for(tmp_path, clock):
    spool = Spool(tmp_path / "spool.sqlite", 2)
    window = Window(spool, 2, RESEND_S)
    for _ in range(2):
        record(spool, window)
    assert send(window) == [(1, 1), (1, 2)]
    assert send(window) == []
    record(spool, window)
    assert send(window) == [(1, 3)], "in the place of the first, which was dropped"


def test_fresh_records_without_an_answer_age_and_leave_the_window_to_the_backlog(spool, clock):
    window = Window(spool, 4, RESEND_S)
    for _ in range(4):
        record(spool, window)
    assert send(window) == [(2, n) for n in range(1, 5)]
    clock.now_s += FRESH_S + 1
    assert send(window) == [(1, 1), (1, 2), (1, 3)]
