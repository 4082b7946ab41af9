"""The spool: durable, bounded, exact about what it holds."""

import gzip
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from kill_images import check_kills

import firmware_py
from firmware_py.storage.spool import Spool, SpoolError

VERSION_1 = Path(__file__).parent / "golden" / "spool-version-1.sqlite.gz"


def sequences(spool):
    return [(record.boot, record.sequence) for record in spool.waiting(1000)]


def test_records_outlive_the_process_and_boots_are_counted(tmp_path):
    spool = Spool(tmp_path / "s" / "spool.sqlite", 10)
    assert spool.boot == 1
    for _ in range(3):
        spool.append(spool.next_sequence(), b"data", advance=1)
    spool.close()
    spool = Spool(tmp_path / "s" / "spool.sqlite", 10)
    assert spool.boot == 2
    assert spool.counter("position") == 3
    spool.append(spool.next_sequence(), b"new")
    assert sequences(spool) == [(1, 1), (1, 2), (1, 3), (2, 1)], "oldest first"


def test_acknowledging_is_idempotent_and_exact(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 10)
    for _ in range(4):
        spool.append(spool.next_sequence(), b"data")
    assert spool.acknowledge(1, (2, 3)) == [2, 3]
    assert spool.acknowledge(1, (2, 3, 99)) == []
    assert spool.acknowledge(7, (1,)) == []
    assert sequences(spool) == [(1, 1), (1, 4)]
    assert len(spool) == 2


def test_a_full_spool_drops_the_oldest_and_counts_it(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 3)
    for _ in range(5):
        spool.append(spool.next_sequence(), b"data")
    assert sequences(spool) == [(1, 3), (1, 4), (1, 5)]
    assert spool.counter("dropped") == 2


def test_a_refused_record_is_kept_but_waits_no_more(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 3)
    spool.append(spool.next_sequence(), b"data")
    assert spool.set_aside(1, 1, "unknown encoder")
    assert not spool.set_aside(1, 1, "again")
    assert len(spool) == 0


def test_what_was_refused_waits_again_after_a_start_and_can_be_refused_again(tmp_path):
    path = tmp_path / "spool.sqlite"
    for boot in (1, 2, 3):
        spool = Spool(path, 10)
        if boot == 1:
            for _ in range(2):
                spool.append(spool.next_sequence(), b"data")
        assert sequences(spool) == [(1, 1), (1, 2)]
        assert [spool.set_aside(1, sequence, "unknown encoder") for sequence in (1, 2)] == [True, True]
        assert len(spool) == 0
        spool.close()
    with pytest.raises(SpoolError, match="belongs to device 0"):
        Spool(path, 10, device=1)


def test_a_folder_that_cannot_hold_a_spool(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="expected a writable folder"):
        Spool(tmp_path / "file" / "spool.sqlite", 3)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "no database":
        data[:16] = bytes(16)
    elif how == "its tables":
        data[100:4096] = b"\xee" * 3996
    else:
        # Of what waits alone: the spool opens, and fails when it is read.
        data[-4096:] = b"\xee" * 4096
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["no database", "its tables", "a record"])
def test_a_damaged_spool_is_put_aside_and_a_fresh_one_begun(tmp_path, how):
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, 1000, first_boot=100, device=3)
    assert not spool.damaged
    for _ in range(50):
        spool.append(spool.next_sequence(), bytes(1000))
    spool.close()
    damage(path, how)
    bytes_before = path.read_bytes()
    before_s = int(time.time())
    spool = Spool(path, 1000, first_boot=200, device=3)
    assert (spool.boot, len(spool)) == (200, 0), "numbers go on from the clock"
    (aside,) = tmp_path.glob("spool.sqlite.damaged-*[0-9]")
    assert int(aside.name.rpartition("-")[2]) >= before_s
    assert aside.read_bytes() == bytes_before, "for who wants to save what is in it"
    assert f"put aside as {aside}" in spool.damaged
    spool.append(spool.next_sequence(), b"data")
    spool.close()
    spool = Spool(path, 1000, device=3)
    assert sequences(spool) == [(200, 1)]
    assert not spool.damaged, "once"


@pytest.mark.parametrize("how", ["no database", "its tables", "a record"])
def test_the_log_of_a_damaged_spool_is_kept_with_it(tmp_path, how):
    """As a power cut leaves it; the latest records are in the log alone."""
    spool = Spool(tmp_path / "spool.sqlite", 1000)
    for _ in range(50):
        spool.append(spool.next_sequence(), bytes(1000))
    spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool.append(spool.next_sequence(), b"the latest")
    path = tmp_path / "cut" / "spool.sqlite"
    path.parent.mkdir()
    for end in ("", "-wal"):
        shutil.copy(tmp_path / f"spool.sqlite{end}", f"{path}{end}")
    damage(path, how)
    assert "\n" not in Spool(path, 10).damaged
    (log,) = path.parent.glob("spool.sqlite.damaged-*-wal")
    assert b"the latest" in log.read_bytes()
    assert log.with_name(log.name.removesuffix("-wal")).exists()


def test_a_spool_that_is_busy_is_no_damaged_one(tmp_path, monkeypatch):
    path = tmp_path / "spool.sqlite"
    Spool(path, 10).close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, **more, timeout=0.01))
    other = connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SpoolError, match="database is locked"):
        Spool(path, 10)
    other.close()
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_kill_at_any_write_leaves_the_spool_as_it_was_after_a_whole_step(tmp_path):
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, 3)
    steps = [
        *[lambda: spool.append(spool.next_sequence(), b"x" * 166, advance=1)] * 3,
        lambda: spool.acknowledge(spool.boot, (1,)),
        lambda: spool.set_aside(spool.boot, 2, "encoder unknown"),
        # These two are one too many each: one drops the refused record, one the oldest.
        *[lambda: spool.append(spool.next_sequence(), b"y" * 9000, advance=1)] * 3,
        lambda: spool.keep("confirmed", 7),
        lambda: spool.set_boot(9),
        lambda: spool.append(spool.next_sequence(), b"z", advance=1),
    ]
    check_kills(path, ("record", "counter"), steps, tmp_path / "image")
    assert spool.counter("dropped") == 3
    spool.close()


def test_refused_records_are_bounded_too_and_go_before_waiting_ones(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 3)
    for _ in range(10):
        sequence = spool.next_sequence()
        spool.append(sequence, b"data")
        if sequence != 1:
            spool.set_aside(1, sequence, "unknown encoder")
    assert sequences(spool) == [(1, 1)]
    assert spool.counter("dropped") == 7, "gone for good, as any other"
    for _ in range(3):
        spool.append(spool.next_sequence(), b"data")
    assert sequences(spool) == [(1, 11), (1, 12), (1, 13)]
    assert spool.counter("dropped") == 10


def test_a_fresh_spool_starts_at_the_boot_it_is_told_and_counts_on(tmp_path):
    for expected in (500, 501):
        spool = Spool(tmp_path / "spool.sqlite", 3, first_boot=500)
        assert spool.boot == expected
        spool.close()


def test_a_boot_that_fits_into_no_record_is_refused_with_advice(tmp_path):
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path, 10, first_boot=(1 << 32) - 1)) as spool:
        assert spool.boot == (1 << 32) - 1
    with pytest.raises(SpoolError, match="got 4294967296; set the clock, .* devices forget 0"):
        Spool(path, 10, first_boot=1_800_000_000)


def test_a_full_disk_is_named_and_leaves_the_spool_as_it_was(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 1000)
    spool.append(spool.next_sequence(), b"kept")
    (pages,) = spool._database.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SpoolError, match="is full.*make room on the disk"):
        for _ in range(100):
            spool.append(spool.next_sequence(), bytes(1000))
    kept = sequences(spool)
    assert kept[0] == (1, 1)
    assert spool.acknowledge(1, (1,)) == [1]


def test_a_spool_is_one_devices_in_one_process(tmp_path):
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, 3, device=1)
    with pytest.raises(SpoolError, match="another device is at work there"):
        Spool(path, 3, device=1)
    spool.close()
    said = "belongs to device 1 of survey 1, this is device {} of survey {}; give each device its own"
    for device, survey in ((2, 1), (1, 2)):
        with pytest.raises(SpoolError, match=said.format(device, survey)):
            Spool(path, 3, device=device, survey=survey)
    again = Spool(path, 3, device=1)
    assert again.boot == 2, "who was turned away has not counted"


def test_a_disk_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, 1000)
    for _ in range(50):
        spool.append(spool.next_sequence(), bytes(1000))
    spool.close()
    spool = Spool(path, 1000)
    spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._database.execute("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(SpoolError, match="cannot be read .*replace the disk"):
        spool.waiting(1000)


def test_the_spool_syncs_as_the_guide_says(tmp_path):
    """The guide's promise about power cuts rests on these two settings of the connection that writes."""
    spool = Spool(tmp_path / "spool.sqlite", 3)
    spool.append(spool.next_sequence(), b"x")
    assert spool.acknowledge(spool.boot, (1,)) == [1], "neither waits for the disk"
    settings = {
        name: spool._database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2}
    guide = (Path(firmware_py.__file__).parent / "README.md").read_text()
    assert "`journal_mode = WAL` and `synchronous = FULL`" in guide


def test_a_spool_of_version_1_is_opened_with_all_that_is_in_it(tmp_path):
    """Written on 29 November 2026, before versions were counted: three records wait, one of them refused."""
    path = tmp_path / "spool.sqlite"
    path.write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    spool = Spool(path, 10, device=3, survey=2)
    assert (spool.boot, spool.counter("position"), spool.counter("latent_bytes")) == (6, 4, 64)
    assert [(r.boot, r.sequence, r.data) for r in spool.waiting(10)] == [
        (5, n, b"record %d" % (n - 1)) for n in (2, 3, 4)
    ]
    spool.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_spool_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "spool.sqlite"
    path.write_bytes(gzip.decompress(VERSION_1.read_bytes()))
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="spool version 9: expected at most 1.*newer EPIC, install that one"):
        Spool(path, 10, device=3, survey=2)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir() if "damaged" in one.name] == []


def test_acknowledged_records_wait_again_when_the_centre_lost_them(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite", 10)
    assert spool.newest_acknowledged() == (0, 0)
    for number in range(1, 6):
        spool.append(spool.next_sequence(), bytes([number]))
    spool.acknowledge(1, (1, 2, 3, 4))
    spool.close()
    spool = Spool(tmp_path / "spool.sqlite", 10)
    assert spool.newest_acknowledged() == (1, 4)
    assert spool.send_again(1, 2, 3) == (2, 0)
    assert sequences(spool) == [(1, 2), (1, 3), (1, 5)]
    assert [record.data for record in spool.waiting(2)] == [b"\2", b"\3"]
    assert spool.send_again(1, 2, 9) == (1, 4), "4 again; 6 to 9 never were; 2, 3 and 5 wait already"
    assert spool.send_again(7, 1, 3) == (0, 3)
    spool.acknowledge(1, (2, 3))
    assert spool.send_again(1, 3, 3) == (1, 0), "as often as it is asked for"


def test_the_newest_acknowledged_records_are_kept_in_the_order_of_their_acknowledgement(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("firmware_py.storage.spool.KEPT_RECORDS", 3)
    spool = Spool(tmp_path / "spool.sqlite", 10)
    for _ in range(6):
        spool.append(spool.next_sequence(), b"data")
    spool.acknowledge(1, (5, 6))
    spool.acknowledge(1, (1, 2))
    assert spool.send_again(1, 1, 6) == (3, 1), "3 and 4 still wait, and 5 is the oldest"
    assert sequences(spool) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 6)]
