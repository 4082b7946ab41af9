"""Maps come back as they were put, with where they come from."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH

from central.dashboard.archive import Archive
from central.storage.database import FILE_NAME, StoreError, connect
from central.storage.map_store import NewMap, Store


@pytest.fixture
def store(data_dir):
    opened = Store(data_dir)
    yield opened
    opened.close()


def put(store, event=1, survey=1, model_hash=MODEL_HASH, last_record=1, value=2000.0, partial=False):
    velocity = value + np.arange(6.0).reshape(2, 3)
    entry = NewMap((survey, event, model_hash), last_record, partial, velocity, velocity / 10, {"by": value})
    return store.put([entry])[0]


def test_a_map_comes_back_as_it_was(store):
    assert put(store, partial=True) == 1
    stored = store.get(1)
    assert (stored.survey, stored.event, stored.model_hash, stored.revision) == (1, 1, MODEL_HASH, 1)
    assert stored.partial is True
    assert stored.provenance == {"by": 2000.0}
    assert stored.velocity_mps.dtype == stored.uncertainty_mps.dtype == np.float32
    np.testing.assert_array_equal(stored.velocity_mps, [[2000, 2001, 2002], [2003, 2004, 2005]])
    np.testing.assert_allclose(stored.uncertainty_mps, stored.velocity_mps / 10, atol=0.5)


def test_revisions_count_up_by_event_and_the_newest_is_shown(store):
    assert [put(store, last_record=n, value=2000.0 + n) for n in (3, 5)] == [1, 2]
    assert put(store, event=2, last_record=4) == 1
    assert put(store, survey=2, last_record=9) == 1
    assert store.get(1, survey=1).provenance == {"by": 2005.0}
    newest = [(m.survey, m.event, m.revision, m.provenance["by"]) for m in store.newest()]
    assert newest == [(1, 1, 2, 2005.0), (1, 2, 1, 2000.0), (2, 1, 1, 2000.0)]
    assert [m.survey for m in store.newest(survey=2)] == [2]


def test_maps_put_together_are_all_kept_or_none(store, data_dir):
    tile = np.ones((2, 3), np.float32)
    entries = [NewMap((1, event, MODEL_HASH), event, False, tile, tile, {}) for event in (1, 2, 2)]
    assert store.put(entries) == [1, 1, 2]
    disk = connect(data_dir)
    disk.execute(
        "CREATE TRIGGER full BEFORE INSERT ON map WHEN NEW.event = 9 BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    disk.close()
    entries = [NewMap((1, event, MODEL_HASH), event, False, tile, tile, {}) for event in (8, 9)]
    with pytest.raises(StoreError, match="cannot keep 2 maps .survey 1, event 8, survey 1, event 9"):
        store.put(entries)
    assert [stored.event for stored in store.newest()] == [1, 2]


def test_of_two_models_the_one_that_drew_last_is_shown(store):
    put(store, model_hash=OTHER_HASH, last_record=2)
    put(store, model_hash=MODEL_HASH, last_record=1)
    assert store.get(1).model_hash == OTHER_HASH


def everyones_newest(store, data_dir, event=1):
    """What commands, the list, the page and the checks take for an event's newest map, by what it says of itself."""
    id = store.newest_unchecked(0, store.last_id())
    with closing(Archive(data_dir)) as archive:
        return [
            stored.provenance["by"]
            for stored in (
                store.get(event),
                store.revisions(event)[0],
                *store.newest(),
                store.by_id(id),
                archive.section(1, event).stored,
                *(section.stored for section in archive.sections()),
            )
        ]


def test_everyone_has_the_same_newest_map(store, data_dir):
    put(store, last_record=4, value=1.0)
    put(store, last_record=5, value=2.0)
    put(store, last_record=4, value=3.0)
    assert everyones_newest(store, data_dir) == [2.0] * 6, "drawn later, of earlier records"
    put(store, last_record=5, value=4.0)
    assert everyones_newest(store, data_dir) == [4.0] * 6, (
        "of the same records the last drawn, as when refined"
    )
    put(store, model_hash=OTHER_HASH, last_record=6, value=5.0)
    assert everyones_newest(store, data_dir) == [5.0] * 6, "of two models the later records'"


def test_what_took_long_is_not_kept_over_a_map_of_later_records(store):
    tile = np.ones((2, 3), np.float32)
    key = (1, 1, MODEL_HASH)
    put(store, last_record=4)
    assert store.put_unless_newer(NewMap(key, 4, True, tile, tile, {"by": "refined"})) == 2
    put(store, last_record=5)
    assert store.put_unless_newer(NewMap(key, 4, True, tile, tile, {"by": "late"})) is None
    put(store, model_hash=OTHER_HASH, last_record=6)
    assert store.put_unless_newer(NewMap(key, 5, True, tile, tile, {"by": "late"})) is None, (
        "whatever the model"
    )
    assert [stored.provenance["by"] for stored in store.revisions(1)] == [2000.0, 2000.0, "refined", 2000.0]


def test_emitted_through_is_the_last_record_of_that_event_and_model(store):
    key = (1, 1, MODEL_HASH)
    assert store.emitted_through(key) == 0
    put(store, last_record=3)
    put(store, last_record=5)
    put(store, model_hash=OTHER_HASH, last_record=8)
    assert store.emitted_through(key) == 5


def test_get_says_what_there_is_instead(store):
    with pytest.raises(StoreError, match="event 4: not in the store, which holds no event yet"):
        store.get(4)
    put(store, event=2)
    put(store, event=9)
    with pytest.raises(StoreError, match="event 4: not in the store, which holds 2 events from 2 to 9"):
        store.get(4)
    with pytest.raises(StoreError, match="event 2: not in survey 3 of the store, which holds no event yet"):
        store.get(2, survey=3)
    put(store, survey=2, event=2)
    with pytest.raises(StoreError, match=r"event 2: in surveys \[1, 2\]; name one with --survey"):
        store.get(2)


def test_a_map_that_cannot_be_kept_leaves_nothing_and_the_store_usable(store, data_dir):
    other = connect(data_dir)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON map BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    with pytest.raises(StoreError, match="survey 1, event 1.*disk is full"):
        put(store)
    other.execute("DROP TRIGGER full")
    other.close()
    assert list(store.newest()) == []
    assert put(store) == 1


def test_a_store_is_not_made_by_looking_at_it(tmp_path):
    with pytest.raises(StoreError, match="not found; expected the data_dir of a centre that has run"):
        Store(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_damaged_file_is_a_store_error(store, data_dir):
    put(store)
    vandal = sqlite3.connect(data_dir / FILE_NAME)
    vandal.execute("DROP TABLE map")
    vandal.close()
    for read in (lambda: list(store.newest()), lambda: store.get(1)):
        with pytest.raises(StoreError, match="cannot be read"):
            read()
