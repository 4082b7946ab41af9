"""What is told of the journal reaches its reader, at once and whole."""

import threading
import time

from central.storage.journal_cursor import Arrivals

LONG_S = 600.0


def test_a_reader_that_waits_is_woken_by_what_it_has_not_read_and_by_the_end():
    arrivals = Arrivals()
    arrivals.tell(3)
    assert arrivals.wait(2, LONG_S) is False, "there is one to read"
    woken = []
    reader = threading.Thread(target=lambda: woken.append(arrivals.wait(3, LONG_S)))
    reader.start()
    arrivals.tell(4)
    reader.join(20.0)
    assert woken == [False]
    arrivals.end()
    assert arrivals.wait(3, LONG_S) is False, "the end comes after what is left"
    assert arrivals.wait(4, LONG_S) is True


def test_without_news_a_reader_goes_on_after_its_time():
    began_s = time.monotonic()
    assert Arrivals().wait(0, 0.05) is False
    assert time.monotonic() - began_s >= 0.05


def test_who_can_take_in_no_more_waits_all_the_same_and_is_woken_by_the_end():
    arrivals = Arrivals()
    arrivals.tell(3)
    woken = []
    reader = threading.Thread(target=lambda: woken.append(arrivals.wait(1, LONG_S, full=True)))
    reader.start()
    arrivals.tell(4)
    arrivals.end()
    reader.join(20.0)
    assert woken == [True]


def test_the_end_waits_for_what_is_left_only_so_long(monkeypatch):
    arrivals = Arrivals()
    arrivals.tell(3)
    arrivals.end()
    assert (arrivals.wait(2, LONG_S), arrivals.over) == (False, False)
    monkeypatch.setattr("central.storage.journal_cursor.DRAIN_S", 0.0)
    assert (arrivals.wait(2, LONG_S), arrivals.over) == (True, True)


def test_what_waits_is_counted_from_what_was_read():
    arrivals = Arrivals()
    assert arrivals.waiting() == 0
    arrivals.tell(7)
    assert arrivals.waiting() == 0, "nobody knows yet how far it was read by an earlier run"
    arrivals.wait(4, LONG_S)
    assert arrivals.waiting() == 3
    arrivals.tell(6)
    assert arrivals.waiting() == 3, "told late, of a group that is not the newest"
