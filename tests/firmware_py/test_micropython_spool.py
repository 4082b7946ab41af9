"""The microcontroller's spool: what was kept is there again after any cut; under CPython, which it runs on too."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcu_spool import BOOT, OWNER, forget, put, waiting

from firmware_py.micropython.config import ConfigError
from firmware_py.micropython.spool import OwnerError, Spool
from firmware_py.micropython.store import SLOT_BYTES, FileStore


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "spool.bin")


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 6),
    steps=st.lists(st.one_of(st.just("put"), st.just("cut"), st.integers(0, 5)), max_size=40),
)
def test_as_a_queue_that_gives_up_its_oldest(tmp_path_factory, n, steps):
    """A number acknowledges the so-many-th that waits; a cut may bring acknowledged records back, and loses none."""
    path = str(tmp_path_factory.mktemp("spool") / "spool.bin")
    spool = Spool(FileStore(path, n), OWNER)
    queue, gone, dropped, sequence, boot = [], set(), 0, 0, BOOT
    for step in steps:
        if step == "put":
            sequence += 1
            put(spool, sequence, boot)
            queue.append((boot, sequence))
            if spool.waiting < len(queue):
                queue.pop(0)
                dropped += 1
        elif step == "cut":
            spool.close()
            spool = Spool(FileStore(path, n), OWNER)
            boot, sequence = boot + 1, 0
            back = [key for key in waiting(spool) if key not in queue]
            assert set(back) <= gone
            queue = waiting(spool) if back else queue
        elif step < len(queue):
            key = queue.pop(step)
            gone.add(key)
            assert forget(spool, key[1], key[0])
        assert waiting(spool) == queue
        assert spool.dropped == dropped or step == "cut"
        dropped = spool.dropped
    spool.close()


def test_a_replay_goes_on_after_the_newest(path):
    spool = Spool(FileStore(path, 4), OWNER)
    for sequence in range(1, 7):
        put(spool, sequence)
        forget(spool, sequence)
    spool.close()
    again = Spool(FileStore(path, 4), OWNER)
    assert (again.last_boot, again.last_event) == (BOOT, 6)
    assert waiting(again) == [(BOOT, 6)], "no acknowledgement is written; the centre keeps it once"


@pytest.mark.parametrize("cut_at", [0, 1, 6, 60, SLOT_BYTES - 1])
def test_a_write_that_was_cut_takes_no_other_record(path, cut_at):
    spool = Spool(FileStore(path, 4), OWNER)
    for sequence in (1, 2, 3):
        put(spool, sequence)
    spool.close()
    with open(path, "r+b") as file:
        file.seek(2 * SLOT_BYTES + cut_at)
        rest = bytes(byte ^ 0xFF for byte in file.read(SLOT_BYTES - cut_at))
        file.seek(2 * SLOT_BYTES + cut_at)
        file.write(rest)
    again = Spool(FileStore(path, 4), OWNER)
    assert waiting(again) == [(BOOT, 1), (BOOT, 2)]
    put(again, 1, BOOT + 1)
    assert waiting(again) == [(BOOT, 1), (BOOT, 2), (BOOT + 1, 1)]


def test_flash_that_goes_bad_under_a_record_gives_it_up(path):
    spool = Spool(FileStore(path, 4), OWNER)
    slot = put(spool, 1)
    with open(path, "r+b") as file:
        file.seek(slot * SLOT_BYTES + 20)
        file.write(b"\xa5")
    assert spool.read(slot) == 0
    assert (spool.waiting, spool.dropped) == (0, 1)


def test_another_devices_spool_is_refused(path):
    spool = Spool(FileStore(path, 4), OWNER)
    put(spool, 1)
    spool.close()
    with pytest.raises(
        OwnerError, match="records of device 3, survey 1, this is device 4, survey 1; if they"
    ):
        Spool(FileStore(path, 4), (4, 1))


def test_a_spool_keeps_its_size_and_says_so_until_its_file_is_removed(path, capsys):
    spool = Spool(FileStore(path, 4), OWNER)
    put(spool, 1)
    spool.close()
    assert capsys.readouterr().out == ""
    kept = Spool(FileStore(path, 8), OWNER)
    assert (kept.n, waiting(kept)) == (4, [(BOOT, 1)])
    assert "keeps its 4 slots, for 8 records remove it once nothing waits" in capsys.readouterr().out
    kept.close()
    os.remove(path)
    fresh = Spool(FileStore(path, 8), OWNER)
    for sequence in range(1, 9):
        put(fresh, sequence)
    assert fresh.waiting == 8


def test_slots_may_lie_apart_and_another_distance_is_not_read(path):
    spool = Spool(FileStore(path, 32, 4096), OWNER)
    for sequence in range(1, 41):
        put(spool, sequence)
    spool.close()
    assert os.path.getsize(path) == 32 * 4096
    assert waiting(Spool(FileStore(path, 32, 4096), OWNER)) == [(BOOT, sequence) for sequence in range(9, 41)]
    with pytest.raises(OwnerError, match="holds a spool of 32 slots, device.json asks for 256; set it back"):
        Spool(FileStore(path, 256), OWNER)
    with pytest.raises(ConfigError, match="stride 700: expected a multiple of 512"):
        FileStore(path, 32, 700)


def test_half_a_file_is_made_anew(path):
    with open(path, "wb") as file:
        file.write(bytes(700))
    assert Spool(FileStore(path, 4), OWNER).n == 4


def test_the_last_error_survives_restarts_and_is_written_once(path):
    spool = Spool(FileStore(path, 16), OWNER)
    spool.start(BOOT, 1)
    put(spool, 1)
    spool.failed(1, "OSError(110,)")
    spool.close()
    spool = Spool(FileStore(path, 16), OWNER)
    assert (spool.last_error, spool.failed_starts) == ("OSError(110,)", 1)
    spool.start(BOOT + 1, 2)
    with open(path, "rb") as file:
        before = file.read()
    spool.failed(2, "OSError(110,)")
    with open(path, "rb") as file:
        assert file.read() == before, "the same error costs no flash"
    spool.failed(2, "é" * 99)
    spool.close()
    spool = Spool(FileStore(path, 16), OWNER)
    assert (spool.last_error, spool.failed_starts) == ("?" * 64, 2)
    assert waiting(spool) == [(BOOT, 1)]
    spool.start(BOOT + 2, 3)
    spool.failed(3, "é" * 99)
    spool.close()
    assert Spool(FileStore(path, 16), OWNER).failed_starts == 3
