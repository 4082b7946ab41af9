"""Files of older versions are migrated, newer ones refused, and nothing is lost on the way."""

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, latent_record

import epic
from central.dashboard.archive import Archive
from central.fleet.device_views import devices
from central.recordings.store import RecordingStore
from central.storage import schema
from central.storage.database import FILE_NAME, StoreError, connect, lock
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from central.updates.rollout_store import RolloutStore
from central.verification.refine_jobs import JobQueue

VERSION_1 = Path(__file__).parent / "golden" / "version-1.sqlite.gz"
VERSION_2 = Path(__file__).parent / "golden" / "version-2.sqlite.gz"
VERSION_3 = Path(__file__).parent / "golden" / "version-3.sqlite.gz"
T_US = 1_700_000_000_000_000


@pytest.fixture
def old(tmp_path):
    """The data folder of a centre of schema version 1 (29 November 2026): six records, two maps, a rollout."""
    (tmp_path / FILE_NAME).write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    return tmp_path


def version(data_dir):
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database:
        return database.execute("PRAGMA user_version").fetchone()[0]


def test_a_file_of_version_1_is_migrated_with_all_that_is_in_it(old):
    assert version(old) == 0
    with closing(Store(old)) as store:
        full, partial = store.newest()
        assert (full.event, full.partial, full.provenance["devices"]) == (7, False, [0, 1, 2, 3, 4])
        np.testing.assert_array_equal(full.velocity_mps, 2000 + np.arange(6).reshape(2, 3) / 4)
        assert (partial.event, partial.partial) == (8, True)
    assert version(old) == schema.VERSION
    with closing(Journal(old)) as journal:
        assert [(r.device, r.sequence, r.payload[0]) for r in journal.latents_of((1, 7, MODEL_HASH), 5)] == [
            (n, 1, n) for n in range(5)
        ]
        assert not journal.commit([(latent_record(device=0, event=7, value=0), T_US, 94)]).new, "still known"
    (first, *_) = devices(old)
    assert (first.records, first.loss, first.set_bytes, first.boot, first.sequence) == (2, 1, 64, 1, 3)
    with closing(RolloutStore(old)) as rollouts:
        (rollout,) = rollouts.rollouts()
        assert (rollout.name, rollout.devices[1, 0].state) == ("epic-small-128", "running")


def test_a_file_of_version_2_gets_the_tables_of_recordings(tmp_path):
    """The file of version 1 as version 2 migrated it, and a flagged map of version 2."""
    (tmp_path / FILE_NAME).write_bytes(gzip.decompress(VERSION_2.read_bytes()))
    assert version(tmp_path) == 2
    with closing(Store(tmp_path)) as store:
        assert [stored.event for stored in store.newest()] == [7, 8, 9]
        assert store.get(9).provenance["flags"] == ["strange"]
    assert version(tmp_path) == schema.VERSION
    with closing(RecordingStore(tmp_path)) as recordings:
        assert [one.state for one in recordings.ask(7, None, [0])] == ["asked"]


def test_a_file_of_version_3_gets_the_queue_of_refinements(tmp_path):
    """The file of version 2 as version 3 migrated it, and a request for a recording."""
    (tmp_path / FILE_NAME).write_bytes(gzip.decompress(VERSION_3.read_bytes()))
    assert version(tmp_path) == 3
    with closing(JobQueue(tmp_path)) as queue:
        assert queue.jobs() == []
    assert version(tmp_path) == schema.VERSION
    with closing(RecordingStore(tmp_path)) as recordings, closing(Store(tmp_path)) as store:
        assert [(one.event, one.device, one.state) for one in recordings.requests()] == [(7, 0, "asked")]
        assert [stored.event for stored in store.newest()] == [7, 8, 9]


def test_what_is_written_to_a_migrated_file_is_compressed_and_read_beside_the_old(old):
    velocity = np.full((70, 70), 2500.0, np.float32)
    with closing(Store(old)) as store:
        (kept,) = store.put([NewMap((1, 9, MODEL_HASH), 9, False, velocity, velocity, {"devices": [0]})])
        assert kept == 1
        assert [stored.event for stored in store.newest()] == [7, 8, 9]
        np.testing.assert_array_equal(store.get(9).velocity_mps, velocity)
        store.amend(store.get(7), "consistency", {"checked_us": 5})
        assert store.get(7).provenance["consistency"] == {"checked_us": 5}
    with closing(sqlite3.connect(old / FILE_NAME)) as database:
        (size,) = database.execute("SELECT length(velocity) FROM map WHERE event = 9").fetchone()
    assert size < 1000


def test_a_file_from_before_devices_were_counted_is_counted(old):
    with closing(sqlite3.connect(old / FILE_NAME)) as database, database:
        database.execute("DROP TABLE device_boot")
    (first, *_) = devices(old)
    assert (first.records, first.boot, first.sequence) == (2, 1, 3)


@pytest.mark.parametrize("open_it", [Journal, Store, Archive, lambda path: RolloutStore(path, create=True)])
def test_a_file_of_a_newer_version_is_refused_and_left_alone(old, open_it):
    with closing(sqlite3.connect(old / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 99")
    before = (old / FILE_NAME).read_bytes()
    with pytest.raises(StoreError, match="schema version 99: expected at most 4.*install that one"):
        open_it(old)
    with pytest.raises(StoreError, match="schema version 99"):
        connect(old, read_only=True)
    assert (old / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("table", ["record", "map", "device", "rollout"])
def test_a_table_with_a_column_more_is_refused_before_anything_is_acknowledged(data_dir, table):
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database:
        database.execute(f"ALTER TABLE {table} ADD COLUMN more INTEGER NOT NULL DEFAULT 0")
    with pytest.raises(StoreError, match=f"table {table}: expected columns .*found .*more; install the EPIC"):
        Journal(data_dir)


def test_a_file_is_not_migrated_under_an_older_centre_at_work(old):
    held = lock(old)
    with pytest.raises(StoreError, match="an older centre is running on it; stop that one"):
        Store(old)
    assert version(old) == 0
    held.close()
    Store(old).close()
    assert version(old) == schema.VERSION


def test_a_migration_that_fails_leaves_the_old_file(old, monkeypatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (a); SELECT absent"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(StoreError, match="no such column: absent"):
        Store(old)
    assert version(old) == 0
    monkeypatch.undo()
    with closing(Store(old)) as store:
        assert len(list(store.newest())) == 2


def test_the_doctor_says_that_a_file_is_newer(old, tmp_path, capsys):
    config = tmp_path / "central.toml"
    config.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "."\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n'
    )
    with closing(sqlite3.connect(old / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 99")
    assert epic.main(["doctor", "--config", str(config)]) == 1
    assert "schema version 99: expected at most 4" in capsys.readouterr().out
