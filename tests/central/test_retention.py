"""The store gives up what it is told to, the oldest first, and never what is flagged or refined."""

import os
import shutil
import threading
from collections import namedtuple
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, latent_record
from page_maps import put_map

from central.config import ConfigError, RetentionSection, load_config
from central.fleet.device_views import devices
from central.fleet.gaps import GapWatch
from central.recordings.given import given_path
from central.storage import retention as module
from central.storage.database import connect
from central.storage.journal import Journal
from central.storage.map_store import Store
from central.storage.retention import DAY_US, Retention, picture_path
from firmware_py.runtime.log import Log, now_us


@pytest.fixture
def put(data_dir, monkeypatch):
    """An event of so many days ago, whole: five records, a map, a picture."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)

    def put_event(event, days=0.0, **provenance):
        with closing(Journal(data_dir)) as journal:
            journal.commit([(latent_record(device=d, event=event, sequence=event), 1, 94) for d in range(5)])
            last_record = journal.newest()
        decoded_us = now_us() - int(days * DAY_US)
        put_map(data_dir, event, last_record=last_record, decoded_us=decoded_us, **provenance)
        for path in (picture_path(data_dir, 1, event), given_path(data_dir, 1, event)):
            path.parent.mkdir(exist_ok=True)
            path.write_text("picture or recording")

    return put_event


def look(data_dir):
    """Look at the numbers of all records, as a running centre does every second."""
    with closing(connect(data_dir)) as database:
        GapWatch(Log(data_dir / "log")).look(database, now_us())


def prune(data_dir, **section):
    look(data_dir)
    return Retention(data_dir, RetentionSection(**section), Log(data_dir / "log")).prune(threading.Event())


def queue(data_dir, event, state):
    """Put a refinement of the event into the queue."""
    with closing(connect(data_dir)) as database:
        database.execute(
            "INSERT INTO refinement_job VALUES (NULL, 1, ?, 'fetched', '', '', 20, 'blocky', ?, '', NULL, 0, 1, 0, 1)",
            (event, state),
        )


def pictures_left(data_dir):
    return sorted(int(path.stem.split("event")[1]) for path in (data_dir / "pictures").iterdir())


def left(data_dir, with_pictures=True):
    with closing(Store(data_dir)) as store:
        events = [stored.event for stored in store.newest()]
    with closing(connect(data_dir)) as database:
        records = database.execute("SELECT DISTINCT event FROM record ORDER BY event").fetchall()
    pictures = pictures_left(data_dir) if with_pictures else events
    recordings = sorted(int(path.stem.split("event")[1]) for path in (data_dir / "recordings").iterdir())
    assert events == [event for (event,) in records] == pictures == recordings
    return events


def test_nothing_goes_without_being_told_to(data_dir, put):
    put(1, days=10_000)
    put(2)
    assert prune(data_dir) == (0, 0)
    assert left(data_dir) == [1, 2]


def test_old_events_go_with_all_that_is_theirs_but_flagged_and_refined_ones(data_dir, put):
    put(1, days=9)
    put(2, days=8, flags=["look at it"])
    put(3, days=8, refinement={"of_revision": 1})
    put(4, days=6)
    put(5)
    assert prune(data_dir, max_age_days=7) == (1, 0)
    assert left(data_dir) == [2, 3, 4, 5]
    assert prune(data_dir, max_age_days=7) == (0, 0)


def test_of_too_many_events_the_oldest_go(data_dir, put):
    for event in range(1, 50):
        put(event)
    assert prune(data_dir, max_events=10) == (39, 0)
    assert left(data_dir) == list(range(40, 50))
    with closing(Journal(data_dir)) as journal:
        assert not journal.undecoded(), "or the next start would decode them again"
        new = journal.commit([(latent_record(device=0, event=99, sequence=99), 1, 94)]).new
    assert new[0].id == 5 * 49 + 1, "no id is given twice"


def test_events_that_stay_do_not_count_towards_the_maximum(data_dir, put):
    """Or enough flagged events would have every new one deleted."""
    for event in range(1, 4):
        put(event, flags=["look at it"])
    for event in range(4, 12):
        put(event)
    put_map(data_dir, 4, last_record=20, refinement={"of_revision": 1})
    queue(data_dir, 5, "waiting")
    assert prune(data_dir, max_events=4) == (2, 0)
    assert left(data_dir) == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert prune(data_dir, max_events=4) == (0, 0)


def test_an_event_in_the_queue_of_refinements_stays_until_its_job_has_ended(data_dir, put):
    for event in range(1, 5):
        put(event, days=9)
    put(5)
    for event, state in ((1, "waiting"), (2, "running"), (3, "cancelled")):
        queue(data_dir, event, state)
    assert prune(data_dir, max_age_days=7) == (2, 0)
    assert left(data_dir) == [1, 2, 5]
    with closing(connect(data_dir)) as database:
        database.execute("UPDATE refinement_job SET state = 'done'")
    assert prune(data_dir, max_age_days=7) == (2, 0)
    assert left(data_dir) == [5]


def test_the_last_event_stays_whatever_its_age(data_dir, put):
    put(1, days=9)
    assert prune(data_dir, max_age_days=1) == (0, 0)
    assert left(data_dir) == [1]


def test_a_clock_that_is_ahead_deletes_no_fresh_event(data_dir, put, monkeypatch):
    put(1, days=400)
    for event in range(2, 6):
        put(event)
    put_map(data_dir, 2, last_record=10, decoded_us=now_us() - 300 * DAY_US, refinement={"of_revision": 1})
    ahead_us = now_us() + 366 * DAY_US
    monkeypatch.setattr(module, "now_us", lambda: ahead_us)
    assert prune(data_dir, max_age_days=365) == (1, 0)
    assert left(data_dir) == [2, 3, 4, 5]


def test_for_want_of_disk_superseded_maps_go_before_events(data_dir, put, monkeypatch):
    put(1)
    put_map(data_dir, 1, last_record=5)
    put_map(data_dir, 1, last_record=5, refinement={"of_revision": 2})
    put(2)
    put(3)
    free = [10 << 20]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free[0]))
    assert prune(data_dir, min_free_mib=9) == (0, 0)
    # Revision 1 of event 1; 3 is refined, of 2. Then event 2; the last one stays.
    free[0] = 0
    assert prune(data_dir, min_free_mib=9) == (1, 1)
    assert left(data_dir, with_pictures=False) == [1, 3]
    with closing(Store(data_dir)) as store:
        assert [stored.revision for stored in store.revisions(1)] == [3, 2]
    assert '"retention_short"' in (data_dir / "log").read_text()


def test_for_want_of_disk_pictures_go_before_events_the_oldest_first(data_dir, put, monkeypatch):
    """A picture can be drawn again from its map, an event cannot."""
    monkeypatch.setattr(module, "BATCH_PICTURES", 1)
    monkeypatch.setattr(module, "MAX_LISTED", 2)
    for event in range(1, 6):
        put(event, **({"flags": ["look at it"]} if event == 2 else {}))
        os.utime(picture_path(data_dir, 1, event), (event, event))
    put_map(data_dir, 1, last_record=5)
    (data_dir / "pictures" / "notes.txt").write_text("an operator's")
    # Enough is free once two pictures are left.
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: namedtuple("usage", "free")(
            (9 << 20) * (len(list((data_dir / "pictures").glob("*.png"))) <= 2)
        ),
    )
    assert prune(data_dir, min_free_mib=9) == (0, 1)
    assert (data_dir / "pictures" / "notes.txt").exists()
    (data_dir / "pictures" / "notes.txt").unlink()
    assert pictures_left(data_dir) == [4, 5]
    assert left(data_dir, with_pictures=False) == [1, 2, 3, 4, 5]
    assert '"pictures": 3' in (data_dir / "log").read_text()


def test_a_flood_of_one_event_is_removed_in_short_transactions(data_dir, put, monkeypatch):
    monkeypatch.setattr(module, "BATCH_RECORDS", 50)
    put(1, days=9)
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=0, event=1, sequence=1000 + n), 1, 94) for n in range(333)])
        last_record = journal.newest()
    put_map(data_dir, 1, last_record=last_record, decoded_us=1)
    put(2)
    assert prune(data_dir, max_age_days=7) == (1, 0)
    assert left(data_dir) == [2]


def test_a_removed_event_is_neither_lost_nor_made_again(data_dir, put):
    for event in range(1, 41):
        put(event)
    assert prune(data_dir, max_events=10) == (30, 0)

    def receive(*sequences):
        with closing(Journal(data_dir)) as journal:
            records = [latent_record(device=0, event=n, sequence=n) for n in sequences]
            committed = journal.commit([(record, 1, 94) for record in records])
            assert not committed.conflicts
            waiting = {latent.event for latent in journal.undecoded()}
        look(data_dir)
        return [latent.sequence for latent in committed.new], waiting, devices(data_dir)[0].loss

    assert receive(42) == ([42], {42}, 1), "one record overtook another"
    assert receive(*range(1, 43)) == ([41], {41, 42}, 0)
    assert receive(45) == ([45], {41, 42, 45}, 2), "and losses are still found"


def test_an_event_waits_until_the_numbers_of_its_records_are_known(data_dir, put):
    for event in (1, 2, 3):
        put(event, days=9)
    look(data_dir)
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=0, event=1, sequence=4), 1, 94)])
    put(5)
    retention = Retention(data_dir, RetentionSection(max_age_days=7), Log(data_dir / "log"))
    assert retention.prune(threading.Event()) == (2, 0)
    assert left(data_dir) == [1, 5]
    with closing(Journal(data_dir)) as journal:
        assert len(journal.latents_of((1, 1, MODEL_HASH), 5)) == 6, "whole"
    look(data_dir)
    assert retention.prune(threading.Event()) == (1, 0)
    assert left(data_dir) == [5]


def test_an_event_stays_if_a_record_arrives_while_it_is_removed(data_dir, put, monkeypatch):
    put(1, days=9)
    put(2)
    look(data_dir)
    removed = Retention._remove_event

    def receive_first(retention, *args):
        with closing(Journal(data_dir)) as journal:
            journal.commit([(latent_record(device=0, event=1, sequence=3), 1, 94)])
        return removed(retention, *args)

    monkeypatch.setattr(Retention, "_remove_event", receive_first)
    retention = Retention(data_dir, RetentionSection(max_age_days=7), Log(data_dir / "log"))
    assert retention.prune(threading.Event()) == (0, 0)
    assert left(data_dir) == [1, 2]


def test_a_gap_is_filled_though_records_within_it_were_removed(data_dir, put):
    put(1, days=9)
    put(5)
    look(data_dir)
    put(3, days=9)
    put(6)
    assert prune(data_dir, max_age_days=7) == (2, 0)
    view = devices(data_dir)[0]
    assert [(gap.first, gap.last, gap.missing) for gap in view.gaps] == [(2, 2, 1), (4, 4, 1)]
    with closing(Journal(data_dir)) as journal:
        again = journal.commit([(latent_record(device=0, event=n, sequence=n), 1, 94) for n in range(1, 6)])
    assert [latent.sequence for latent in again.new] == [2, 4]
    look(data_dir)
    assert devices(data_dir)[0].loss == 0


def test_the_configuration_has_a_section_for_it(tmp_path):
    config = tmp_path / "central.toml"
    text = (
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n'
    )
    config.write_text(f"{text}[retention]\nmax_age_days = 365\nmin_free_mib = 2048\n")
    assert load_config(config).retention == RetentionSection(max_age_days=365, min_free_mib=2048)
    config.write_text(f"{text}[retention]\nmax_events = 0\n")
    with pytest.raises(ConfigError, match="retention.max_events"):
        load_config(config)
