"""Damage on the disk is noticed: by whoever reads what is damaged, and by the doctor."""

import hashlib
import json
import sqlite3
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, latent_record
from page_maps import put_map

import epic
from central.dashboard.archive import Archive
from central.storage.database import FILE_NAME, StoreError
from central.storage.journal import Journal, damaged_records
from central.storage.map_store import DamagedMapError, Store
from firmware_py.runtime.log import Log

KEY = (1, 7, MODEL_HASH)


@pytest.fixture
def config(tmp_path, data_dir):
    path = tmp_path / "central.toml"
    path.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\n'
        '[[model]]\nbundle = "none"\ndecoder = "none"\n'
    )
    return path


def change(data_dir, statement):
    """What damage does: values change without SQLite's knowledge."""
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
        assert database.execute(statement).rowcount


DAMAGES = {
    "a velocity": "UPDATE map SET velocity = substr(velocity, 1, 20) || x'00' || substr(velocity, 22) WHERE event = 7",
    "an uncertainty": "UPDATE map SET uncertainty = x'01' WHERE event = 7",
    "what is said of it": "UPDATE map SET provenance = replace(provenance, '[0, 1, 2', '[9, 1, 2') WHERE event = 7",
    "provenance that cannot be read": "UPDATE map SET provenance = '{\"devices\": [0' WHERE event = 7",
    "provenance of before there were checksums": (
        "UPDATE map SET provenance = x'ff00', checksum = NULL WHERE event = 7"
    ),
    "its number": "UPDATE map SET last_record = 36 WHERE event = 7",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_map_is_never_shown_and_hides_no_other(data_dir, config, capsys, damage):
    for event in (6, 7, 8):
        put_map(data_dir, event)
    change(data_dir, damage)
    with closing(Store(data_dir)) as store:
        with pytest.raises(DamagedMapError, match="event 7, revision 1: damaged on the disk"):
            store.get(7)
        assert store.get(8).event == 8
    with closing(Archive(data_dir)) as archive:
        assert [section.stored.event for section in archive.sections()] == [8, 6]
        assert len(archive.drawn_after(0, 10)) == 3
        with pytest.raises(StoreError, match="damaged"):
            archive.sections_of(1, 7)
    assert epic.main(["central", "list", "--json", "--config", str(config)]) == 1
    shown = capsys.readouterr()
    assert [row["event"] for row in json.loads(shown.out)] == [6, 8]
    assert "event 7, revision 1: damaged on the disk" in shown.err
    assert epic.main(["central", "list", "--config", str(config)]) == 1
    assert epic.main(["central", "show", "7", "--config", str(config)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_older_revision_is_shown_where_the_newest_is_damaged(data_dir):
    put_map(data_dir, 7, last_record=1)
    put_map(data_dir, 7, last_record=2)
    change(data_dir, "UPDATE map SET velocity = x'01' WHERE revision = 2")
    with closing(Archive(data_dir)) as archive:
        assert [section.stored.revision for section in archive.sections_of(1, 7)] == [1]
    with closing(Store(data_dir)) as store:
        assert [stored.revision for stored in store.revisions(7)] == [1]
        change(data_dir, "UPDATE map SET velocity = x'01' WHERE revision = 1")
        with pytest.raises(DamagedMapError, match="event 7, revision 2: damaged on the disk"):
            store.revisions(7)


def test_a_damaged_record_is_left_out_and_told(data_dir, tmp_path):
    with closing(Journal(data_dir, Log(tmp_path / "log"))) as journal:
        journal.commit([(latent_record(device=d, event=7, value=d + 1), 1, 94) for d in range(3)])
        change(data_dir, "UPDATE record SET payload = zeroblob(length(payload)) WHERE device = 1")
        assert [r.device for r in journal.after(0, 10)] == [0, 2]
        assert journal.read_through == 3
        assert [r.device for r in journal.latents_of(KEY, 5)] == [0, 2]
        assert list(damaged_records(journal._database)) == [2]
    line = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert (line["message"], line["id"], line["device"]) == ("record_damaged", 2, 1)


def test_a_journal_whose_end_is_damaged_is_read_through(data_dir):
    """Or the reader would ask for what is behind for ever."""
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=d, event=7), 1, 94) for d in range(2)])
        change(data_dir, "UPDATE record SET event = 8")
        assert (journal.after(0, 10), journal.read_through) == ([], 2)
        assert (journal.undecoded(0, 10), journal.read_through) == ([], 2)
        assert (journal.after(2, 10), journal.read_through) == ([], None)


def test_the_thorough_doctor_counts_what_is_damaged(data_dir, config, capsys):
    with closing(Journal(data_dir)) as journal:
        journal.commit([(latent_record(device=d, event=7, value=d + 1), 1, 94) for d in range(3)])
    for event in (7, 8):
        put_map(data_dir, event)
    with closing(sqlite3.connect(data_dir / FILE_NAME)) as database, database:
        for device in (2, 3):
            sha256 = hashlib.sha256(b"in two pieces").digest()
            row = (1, 7, device, "kept", "", "operator", 0, 0, sha256, 13, 13, 1, 1)
            database.execute(f"INSERT INTO recording VALUES ({','.join('?' * len(row))})", row)
            for start, data in ((0, b"in two"), (6, b" pieces")):
                database.execute("INSERT INTO recording_piece VALUES (1, 7, ?, ?, ?)", (device, start, data))
    assert epic.main(["doctor", "--full", "--config", str(config)]) == 1
    assert "3 records, 2 maps" in (shown := capsys.readouterr().out) and "no damage" in shown
    change(data_dir, "UPDATE record SET payload = zeroblob(length(payload)) WHERE device = 1")
    change(data_dir, DAMAGES["a velocity"])
    change(data_dir, "UPDATE recording_piece SET data = zeroblob(length(data)) WHERE device = 3")
    assert epic.main(["doctor", "--full", "--config", str(config)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 records, 1 of 2 maps and 1 recordings are damaged" in shown
    assert "record 2" in shown and "event 7, revision 1" in shown
    assert "event 7: the recording of device 3 is damaged" in shown
