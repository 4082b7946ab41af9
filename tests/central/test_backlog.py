"""What waits to be drawn: all of it comes to a map, in bounded memory, and no stop waits for it."""

import threading
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, FakeDecoder, latent_record
from waiting import wait_until

from central.pipeline import decoding as module
from central.pipeline.decoding import Decoding
from central.pipeline.workers import DecodeResult
from central.storage.journal import Journal
from central.storage.journal_cursor import JournalCursor
from central.storage.map_store import Store
from firmware_py.runtime.log import Log

pytestmark = pytest.mark.slow

LONG_S, SOON_S = 600.0, 0.05
PAGE, MOST = 7, 20


class Rig:
    """The decoder's thread over a journal; ``on_draw`` is called, in that thread, before each batch is drawn."""

    def __init__(self, data_dir, folder, deadline_s=LONG_S, on_draw=lambda: None, workers=None):
        class Decoder(FakeDecoder):
            def decode_batch(self, latents_int8, present):
                on_draw()
                return super().decode_batch(latents_int8, present)

        self.cursor = JournalCursor()
        self._data_dir = data_dir
        self._work = Decoding(
            data_dir,
            deadline_s,
            {MODEL_HASH: Decoder()},
            self.cursor,
            Log(folder / "central.jsonl"),
            lambda picture: None,
            workers,
        )
        self.counts = self._work.counts
        self._thread = threading.Thread(target=self._work.run)

    def start(self):
        self._thread.start()
        return self

    def receive(self, events, devices=range(5)):
        """Latents of ``events``, device after device, as from spools that are emptied one after the other."""
        records = [latent_record(device, event, event) for device in devices for event in events]
        with closing(Journal(self._data_dir)) as journal:
            self.cursor.tell(journal.commit([(record, 1, 200) for record in records]).new[-1].id)

    @property
    def held(self):
        return len(self._work._assembler)

    def end(self):
        self.cursor.end()
        self.join()

    def join(self):
        self._thread.join(60.0)
        assert not self._thread.is_alive()


@pytest.fixture
def rig(data_dir, tmp_path, monkeypatch):
    """Makes rigs over the same journal, with small pages: ``rig(deadline_s, on_draw, workers)``."""
    monkeypatch.setattr(module, "TAKEN_RECORDS", PAGE)
    monkeypatch.setattr(module, "MOST_EVENTS", MOST)
    made = []

    def make(**options):
        made.append(Rig(data_dir, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        if one._thread.ident:
            one.end()


def drawn(data_dir):
    with closing(Store(data_dir)) as store:
        return sorted(stored.event for stored in store.newest())


def test_a_backlog_of_many_pages_is_drawn_before_and_with_what_comes(rig, data_dir):
    """Of an earlier run, and of a flood that comes while it is being drawn: each event's map once."""
    one = rig()
    one.receive(range(1, 11))
    one.start()
    for first in range(11, 51, 10):
        one.receive(range(first, first + 10))
    wait_until(lambda: one.counts["complete"] == 50, what="fifty maps")
    one.receive([51])
    one.end()
    assert one.counts == {"complete": 51}
    assert drawn(data_dir) == list(range(1, 52))
    with closing(Journal(data_dir)) as journal:
        assert journal.undecoded() == []


@pytest.mark.parametrize("from_before", [True, False], ids=["restart", "live"])
def test_a_backlog_of_partial_events_takes_no_more_memory_the_longer_it_is(rig, data_dir, from_before):
    held = []
    one = rig(deadline_s=SOON_S, on_draw=lambda: held.append(one.held))
    if not from_before:
        one.start()
    one.receive(range(1, 201), devices=[0, 3])
    if from_before:
        one.start()
    wait_until(lambda: one.counts["partial"] >= 200, 60.0, "two hundred partial maps")
    assert drawn(data_dir) == list(range(1, 201))
    assert max(held) <= MOST + PAGE


def test_an_event_of_a_backlog_is_drawn_once_however_far_apart_its_latents_lie(rig, data_dir):
    one = rig(deadline_s=0.0)
    one.receive(range(1, 101))
    one.start()
    wait_until(lambda: len(drawn(data_dir)) == 100, 60.0, "a hundred maps")
    one.end()
    assert one.counts == {"complete": 100}


def test_the_backlog_of_an_earlier_run_is_told_while_it_is_worked_off(rig):
    rig().receive(range(1, 21))
    told = []
    one = rig(on_draw=lambda: told.append(one.cursor.waiting()))
    one.start()
    wait_until(lambda: one.counts["complete"] == 20, what="twenty maps")
    assert max(told) == 100 - PAGE, "after the first page"
    assert sorted(told[1:], reverse=True) == told[1:] and told[-1] < max(told)
    wait_until(lambda: one.cursor.waiting() == 0, what="an empty backlog")


def test_a_stop_waits_for_the_batch_that_is_being_drawn_and_the_next_start_draws_the_rest(
    rig, data_dir, monkeypatch
):
    """A service manager kills what does not end within a minute; a backlog takes longer."""
    monkeypatch.setattr("central.storage.journal_cursor.DRAIN_S", 0.0)
    one = rig(on_draw=lambda: one.cursor.end())
    one.receive(range(1, 101))
    one.start().join()
    few = drawn(data_dir)
    assert 0 < len(few) <= module.BATCH_EVENTS
    again = rig().start()
    wait_until(lambda: len(drawn(data_dir)) == 100, 60.0, "the rest")
    assert again.counts == {"complete": 100 - len(few)}


def test_a_whole_event_does_not_wait_behind_many_that_lack_a_device(rig, data_dir):
    """Those have ten minutes; when as many wait as may, the first of them have their turn before."""
    one = rig(deadline_s=LONG_S)
    one.start()
    one.receive(range(1, 101), devices=[0])
    one.receive([101])
    wait_until(lambda: 101 in drawn(data_dir), what="the whole event's map")
    assert one.counts["complete"] == 1
    assert 100 - MOST <= one.counts["partial"] < 100
    one.end()


def test_a_stop_does_not_wait_for_devices_that_a_full_backlog_waits_for(rig, data_dir):
    one = rig()
    one.receive(range(1, 101), devices=[0])
    one.start()
    wait_until(lambda: one.cursor.waiting() == 0, what="all of it to be read")
    one.end()
    assert len(drawn(data_dir)) < 100


class Prompt:
    """Workers that have everything drawn at once; ``most`` is how much ever lay with them."""

    busy = False

    def __init__(self):
        self._done = []
        self.most = 0

    def submit(self, decoder, latents, present, given):
        self._done.append(DecodeResult(given, decoder.decode_batch(latents, present)))
        self.most = max(self.most, len(self._done))

    def finished(self, all_of_it=False):
        while self._done:
            yield self._done.pop()

    def close(self):
        pass


def test_what_workers_have_drawn_is_kept_before_more_is_given(rig, data_dir, monkeypatch):
    monkeypatch.setattr(module, "TAKEN_RECORDS", 1000)
    workers = Prompt()
    one = rig(workers=workers)
    one.receive(range(1, 101))
    one.start()
    wait_until(lambda: one.counts["complete"] == 100, 60.0, "a hundred maps")
    assert workers.most == 1
