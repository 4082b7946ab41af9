"""What is told of the journal reaches its reader, at once and whole."""

import threading
import time

from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from waiting import wait_until

from central import decoding as module
from central.arrivals import Arrivals
from central.decoding import Decoding
from central.journal import Journal
from central.store import Store
from firmware_py.log import Log

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


def test_what_waits_is_counted_from_what_was_read():
    arrivals = Arrivals()
    assert arrivals.waiting() == 0
    arrivals.tell(7)
    arrivals.wait(4, LONG_S)
    assert arrivals.waiting() == 3
    arrivals.tell(6)
    assert arrivals.waiting() == 3, "told late, of a group that is not the newest"


def test_a_backlog_of_many_pages_is_drawn_before_and_with_what_comes(data_dir, tmp_path, monkeypatch):
    """Of an earlier run, and of a flood that comes while it is being drawn: each event's map once."""
    monkeypatch.setattr(module, "TAKEN_RECORDS", 7)
    journal, arrivals = Journal(data_dir), Arrivals()

    def receive(events):
        records = [latent_record(device, event, event) for event in events for device in range(5)]
        arrivals.tell(journal.commit([(record, 1, 200) for record in records]).new[-1].id)

    receive(range(1, 11))
    log = Log(tmp_path / "central.jsonl")
    decoding = Decoding(data_dir, LONG_S, {MODEL_HASH: FakeDecoder()}, arrivals, log, lambda picture: None)
    thread = threading.Thread(target=decoding.run)
    thread.start()
    for first in range(11, 51, 10):
        receive(range(first, first + 10))
    wait_until(lambda: decoding.counts["complete"] == 50, what="fifty maps")
    receive([51])
    arrivals.end()
    thread.join(60.0)
    assert not thread.is_alive()
    assert decoding.counts == {"complete": 51}
    assert journal.undecoded() == []
    store = Store(data_dir)
    assert sorted(map_.event for map_ in store.newest()) == list(range(1, 52))
    store.close()
    journal.close()
