"""How SQLite answers what is asked often: never by reading, or copying, a store that grows for years."""

from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, latent_record
from page_maps import put_map
from queries import asked_by

from central.dashboard.archive import Archive
from central.storage import journal as journal_module
from central.storage.database import connect
from central.storage.journal import Journal
from central.storage.map_store import Store

KEY = (1, 7, MODEL_HASH)


@pytest.fixture
def filled(data_dir):
    """A store with two events, and what the journal knows of a device's boot."""
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(event=7), 1, 100)])
    for event in (7, 9):
        put_map(data_dir, event)
    return data_dir


def plans(database, queries):
    """What SQLite does for each query, a line a step."""
    return [
        row[3]
        for query in queries
        if query.startswith(("SELECT", "\nINSERT"))
        for row in database.execute(f"EXPLAIN QUERY PLAN {query}")
    ]


def plan_of(view, ask):
    """The steps of all that ``ask`` has ``view`` do."""
    queries = []
    view._database.set_trace_callback(queries.append)
    ask(view)
    view._database.set_trace_callback(None)
    assert queries
    return plans(view._database, queries)


@pytest.mark.parametrize(
    ("view", "ask"),
    [
        (Store, lambda store: store.get(7)),
        (Store, lambda store: store.get(7, survey=1)),
        (Store, lambda store: list(store.newest(survey=1))),
        (Store, lambda store: store.emitted_through(KEY)),
        (Store, lambda store: store.newest_unchecked(0, 9)),
        (Journal, lambda journal: journal.undecoded(0, 10)),
        (Journal, lambda journal: journal.latents_of(KEY, 5)),
        (Archive, lambda archive: archive.sections_of(1, 7)),
        (Archive, lambda archive: archive.sections(before=9, survey=1)),
    ],
)
def test_nothing_is_read_from_end_to_end_or_sorted_aside(filled, view, ask):
    with closing(view(filled)) as opened:
        steps = plan_of(opened, ask)
    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step], steps


def test_an_events_maps_are_found_without_the_others(filled):
    with closing(Store(filled)) as store:
        steps = plan_of(store, lambda store: store.revisions(7))
    assert "SEARCH map USING INDEX map_of_event (event=?)" in steps
    assert not [step for step in steps if "SCAN" in step], steps


def test_the_newest_of_all_events_are_read_in_order_and_not_copied_first(filled):
    with closing(Store(filled)) as store:
        steps = plan_of(store, lambda store: list(store.newest()))
    assert not [step for step in steps if "TEMP B-TREE" in step], steps


def test_what_was_drawn_of_an_event_is_found_without_its_maps(filled):
    """They lie beside 40 kB each, and a start asks for every record of the journal."""
    with closing(Journal(filled)) as journal:
        steps = plan_of(journal, lambda journal: journal.undecoded(0, 10))
    assert [step for step in steps if "m USING COVERING INDEX" in step], steps


def test_the_journal_is_opened_without_reading_it(filled, monkeypatch):
    asked = asked_by(monkeypatch, journal_module)
    with closing(Journal(filled)):
        pass
    with closing(connect(filled)) as database:
        steps = plans(database, asked)
    assert not [step for step in steps if "record" in step], steps
