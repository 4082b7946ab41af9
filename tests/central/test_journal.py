"""The journal: each record once, a group whole or not at all."""

import errno
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fake_decoder import LATENT, MODEL_HASH, OTHER_HASH, latent_record
from file_limit import no_file_left
from kill_images import check_kills

from central.storage.database import FILE_NAME, StoreError, connect, lock
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store

KEY = (1, 1, MODEL_HASH)


@pytest.fixture
def journal(data_dir):
    opened = Journal(data_dir)
    yield opened
    opened.close()


def group(*records):
    return [(record, 1000 + i, 56) for i, record in enumerate(records)]


def test_a_record_comes_back_as_it_was(journal, data_dir):
    record = latent_record(device=3, event=1, sequence=9, boot=4_000_000_000, value=-7)
    (new,) = journal.commit([(record, 123, 56)]).new
    reopened = Journal(data_dir)
    assert reopened.of_event(KEY) == [new]
    reopened.close()
    assert (new.device, new.order, new.received_us, new.wire_bytes) == (3, (4_000_000_000, 9), 123, 56)
    assert new.payload == np.full(LATENT, -7, np.int8).tobytes()
    assert new.key == KEY


def test_the_same_record_again_is_not_new_even_within_a_group(journal):
    record = latent_record()
    assert len(journal.commit(group(record, record)).new) == 1
    again = journal.commit(group(record))
    assert (again.new, again.conflicts) == ([], set())
    assert len(journal.of_event(KEY)) == 1


@pytest.mark.parametrize("change", [{"survey": 2}, {"device": 1}, {"boot": 2}, {"sequence": 2}])
def test_each_part_of_the_number_makes_another_record(journal, change):
    committed = journal.commit(group(latent_record(), latent_record(**change)))
    assert len(committed.new) == 2


@pytest.mark.parametrize("change", [{"value": 1}, {"event": 2}, {"model_hash": OTHER_HASH}])
def test_other_content_under_a_number_in_use_is_a_conflict_and_changes_nothing(journal, change):
    (kept,) = journal.commit(group(latent_record())).new
    committed = journal.commit(group(latent_record(sequence=2), latent_record(**change)))
    assert len(committed.new) == 1
    assert committed.conflicts == {1}
    assert journal.of_event(KEY)[0] == kept


def test_a_deleted_record_that_comes_again_is_acknowledged_and_not_stored(journal, data_dir):
    journal.commit(group(*(latent_record(event=n, sequence=n) for n in (1, 2, 5))))
    with closing(connect(data_dir)) as database:
        database.execute("UPDATE device_boot SET scanned = 5")
        database.execute("INSERT INTO gap VALUES (1, 0, 1, 3, 4, 2)")
        database.execute("DELETE FROM record WHERE sequence = 1")
    again = journal.commit(group(*(latent_record(event=n, sequence=n) for n in range(1, 7))))
    assert [entry.sequence for entry in again.new] == [3, 4, 6], "those of the gap, and those not seen yet"
    assert again.conflicts == set()
    assert [entry.sequence for entry in journal.undecoded()] == [2, 5, 3, 4, 6]
    other = journal.commit(group(latent_record(event=9, sequence=2)))
    assert (other.new, other.conflicts) == ([], {0}), "a kept record is still compared"
    assert len(journal.commit(group(latent_record(event=10, sequence=0))).new) == 1, "numbers begin at 1"


def test_a_group_that_fails_half_way_keeps_nothing(journal, data_dir):
    other = connect(data_dir)
    other.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON record WHEN new.sequence = 3"
        " BEGIN SELECT RAISE(ABORT, 'no room'); END"
    )
    records = group(*(latent_record(sequence=s) for s in (1, 2, 3, 4)))
    with pytest.raises(StoreError, match="cannot commit 4 records.*no room"):
        journal.commit(records)
    assert journal.of_event(KEY) == []
    other.execute("DROP TRIGGER fail")
    other.close()
    assert len(journal.commit(records).new) == 4


def test_a_full_disk_is_reported_and_what_comes_after_it_is_kept(journal, data_dir):
    wal = data_dir / f"{FILE_NAME}-wal"
    records = group(*(latent_record(sequence=s) for s in range(1, 2000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 8192, hard))
    try:
        with pytest.raises(StoreError, match="cannot commit 1999 records"):
            journal.commit(records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.of_event(KEY) == []
    assert len(journal.commit(records).new) == 1999


def test_others_see_a_group_while_the_disk_writes_it(journal, data_dir, monkeypatch):
    order, reader = [], Journal(data_dir)
    monkeypatch.setattr("central.storage.journal.os.fdatasync", lambda fd: order.append("synced"))
    journal.commit(group(latent_record()), lambda newest: order.extend(r.id for r in reader.after(0, 9)))
    assert order == [1, "synced"]
    reader.close()


def test_after_a_failed_sync_nothing_is_taken_for_kept(journal, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as disk:
        disk.setattr("central.storage.journal.os.fdatasync", fail)
        with pytest.raises(
            StoreError, match="failed to keep .*central.sqlite-wal .Input/output error.; check the"
        ):
            journal.commit(group(latent_record()))
    # The record is in the file but perhaps not on the disk. A repeat must not be acknowledged.
    with pytest.raises(StoreError, match="start the centre again"):
        journal.commit(group(latent_record()))


def test_it_keeps_records_with_no_file_left(journal):
    with no_file_left():
        assert len(journal.commit(group(latent_record())).new) == 1
    assert len(journal.commit(group(latent_record(sequence=2))).new) == 1


def test_the_file_that_is_synced_was_open_before_the_disk_could_fail(journal, data_dir, monkeypatch):
    """Linux reports a failed write once to each file that was open at the time, and to no later one."""
    wal, open_files = str(data_dir / f"{FILE_NAME}-wal"), Path("/proc/self/fd")
    counted = []

    def count(_):
        counted.append([os.path.realpath(one) for one in open_files.iterdir()].count(wal))

    monkeypatch.setattr("central.storage.journal.os.fdatasync", count)
    journal.commit(group(latent_record()), count)
    assert counted[0] == counted[1]


def test_records_that_a_killed_centre_left_are_synced_before_they_are_acknowledged(data_dir, monkeypatch):
    class KilledError(Exception):
        pass

    def die(_):
        raise KilledError

    killed, successor = Journal(data_dir), Journal(data_dir)
    with pytest.raises(KilledError):
        killed.commit(group(latent_record()), die)
    synced = []
    monkeypatch.setattr("central.storage.journal.os.fdatasync", synced.append)
    assert successor.commit(group(latent_record())).new == []
    assert len(synced) == 1
    successor.commit(group(latent_record()))
    assert len(synced) == 1, "once is enough"
    killed.close()
    successor.close()


def test_a_database_behind_a_symbolic_link_is_synced_too(tmp_path):
    Journal(tmp_path / "disk").close()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE_NAME).symlink_to(tmp_path / "disk" / FILE_NAME)
    journal = Journal(tmp_path / "data")
    assert len(journal.commit(group(latent_record())).new) == 1
    journal.close()


def test_a_number_that_sqlite_cannot_hold_leaves_the_journal_usable(journal):
    with pytest.raises(OverflowError):
        journal.commit(group(latent_record(), latent_record(sequence=2, sample_time_us=1 << 63)))
    assert len(journal.commit(group(latent_record())).new) == 1


def test_a_group_is_one_transaction_for_every_reader(journal, data_dir):
    reader = connect(data_dir)
    seen = []
    journal._database.set_trace_callback(
        lambda _: seen.append(reader.execute("SELECT count(*) FROM record").fetchone()[0])
    )
    journal.commit(group(*(latent_record(sequence=s) for s in (1, 2, 3))))
    journal._database.set_trace_callback(None)
    assert len(seen) >= 5
    assert set(seen) == {0}
    assert reader.execute("SELECT count(*) FROM record").fetchone() == (3,)
    reader.close()


def test_undecoded_is_what_came_after_the_last_map_of_its_event(journal, data_dir):
    first, second, third, other_model, other_survey = journal.commit(
        group(
            latent_record(device=0),
            latent_record(device=1),
            latent_record(device=0, event=2, sequence=2),
            latent_record(device=0, sequence=3, model_hash=OTHER_HASH),
            latent_record(device=0, survey=2),
        )
    ).new
    assert journal.undecoded() == [first, second, third, other_model, other_survey]
    store = Store(data_dir)
    tile = np.ones((2, 2), np.float32)
    store.put([NewMap(KEY, first.id, True, tile, tile, {})])
    assert journal.undecoded() == [second, third, other_model, other_survey]
    store.put([NewMap(KEY, second.id, True, tile, tile, {})])
    assert journal.undecoded() == [third, other_model, other_survey]
    store.close()


def test_the_journal_is_read_on_in_pages_of_what_came_and_of_what_waits(journal, data_dir):
    assert (journal.newest(), journal.after(0, 10), journal.undecoded(0, 10)) == (0, [], [])
    new = journal.commit(group(*(latent_record(event=n, sequence=n) for n in range(1, 6)))).new
    assert journal.newest() == new[-1].id
    assert journal.after(0, 2) == new[:2]
    assert journal.after(new[1].id, 10) == new[2:]
    assert journal.after(new[-1].id, 10) == []
    store = Store(data_dir)
    tile = np.ones((2, 2), np.float32)
    store.put([NewMap((1, 2, MODEL_HASH), new[1].id, True, tile, tile, {})])
    store.close()
    assert journal.undecoded(0, 2) == [new[0], new[2]], "a page is filled with what waits"
    assert journal.undecoded(new[2].id, 10) == new[3:]


def test_a_file_that_is_no_store_is_a_store_error(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StoreError, match=f"{FILE_NAME}: cannot be opened"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(tmp_path / "file" / "data")


def test_a_damaged_file_is_a_store_error_when_it_is_read(journal, data_dir):
    journal.commit(group(latent_record()))
    vandal = sqlite3.connect(data_dir / FILE_NAME)
    vandal.execute("DROP TABLE record")
    vandal.close()
    with pytest.raises(StoreError, match="cannot be read"):
        journal.undecoded()


def test_a_folder_has_one_centre_at_a_time(data_dir):
    held = lock(data_dir)
    with pytest.raises(StoreError, match="another centre"):
        lock(data_dir)
    held.close()
    lock(data_dir).close()
    with pytest.raises(StoreError, match="cannot be opened"):
        lock(data_dir / "nowhere")


def test_a_kill_at_any_write_leaves_groups_and_maps_whole(journal, data_dir, tmp_path):
    """Records of a group, their count for the device, and a map with its place in the journal: all or none."""
    store = Store(data_dir)
    path, tables = data_dir / FILE_NAME, ("record", "device_boot", "map")
    journal.commit(group(latent_record(event=9, sequence=9)))
    tile = np.ones((70, 70), np.float32)
    steps = [
        lambda: journal.commit(group(*(latent_record(device=d) for d in range(5)))),
        lambda: journal.commit(
            group(*(latent_record(device=d, event=e, sequence=e) for e in (2, 3) for d in range(5)))
        ),
        lambda: store.put([NewMap((1, 1, MODEL_HASH), 6, False, tile, tile, {"devices": [0, 1, 2, 3, 4]})]),
        lambda: store.put([NewMap((1, e, MODEL_HASH), 16, False, tile, tile, {}) for e in (2, 3)]),
        lambda: journal.commit(group(latent_record(), latent_record(event=4, sequence=4))),
    ]
    check_kills(path, tables, steps, tmp_path / "image")
    store.close()
