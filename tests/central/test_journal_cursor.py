"""What is told of the journal reaches its reader, at once and whole."""

import threading
import time

from central.storage.journal_cursor import JournalCursor

LONG_S = 600.0


def test_a_reader_that_waits_is_woken_by_what_it_has_not_read_and_by_the_end():
    cursor = JournalCursor()
    cursor.tell(3)
    assert cursor.wait(2, LONG_S) is False, "there is one to read"
    woken = []
    reader = threading.Thread(target=lambda: woken.append(cursor.wait(3, LONG_S)))
    reader.start()
    cursor.tell(4)
    reader.join(20.0)
    assert woken == [False]
    cursor.end()
    assert cursor.wait(3, LONG_S) is False, "the end comes after what is left"
    assert cursor.wait(4, LONG_S) is True


def test_without_news_a_reader_goes_on_after_its_time():
    began_s = time.monotonic()
    assert JournalCursor().wait(0, 0.05) is False
    assert time.monotonic() - began_s >= 0.05


def test_who_can_take_in_no_more_waits_all_the_same_and_is_woken_by_the_end():
    cursor = JournalCursor()
    cursor.tell(3)
    woken = []
    reader = threading.Thread(target=lambda: woken.append(cursor.wait(1, LONG_S, full=True)))
    reader.start()
    cursor.tell(4)
    cursor.end()
    reader.join(20.0)
    assert woken == [True]


def test_the_end_waits_for_what_is_left_only_so_long(monkeypatch):
    cursor = JournalCursor()
    cursor.tell(3)
    cursor.end()
    assert (cursor.wait(2, LONG_S), cursor.over) == (False, False)
    monkeypatch.setattr("central.storage.journal_cursor.DRAIN_S", 0.0)
    assert (cursor.wait(2, LONG_S), cursor.over) == (True, True)


def test_what_waits_is_counted_from_what_was_read():
    cursor = JournalCursor()
    assert cursor.waiting() == 0
    cursor.tell(7)
    assert cursor.waiting() == 0, "nobody knows yet how far it was read by an earlier run"
    cursor.wait(4, LONG_S)
    assert cursor.waiting() == 3
    cursor.tell(6)
    assert cursor.waiting() == 3, "told late, of a group that is not the newest"
