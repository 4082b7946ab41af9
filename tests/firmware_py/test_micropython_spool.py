"""The microcontroller's spool: what was kept is there again after any cut; under CPython, which it runs on too."""

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_py.micropython.spool import SLOT_BYTES, OwnerError, Spool, SpoolError
from firmware_py.protocol import packet

OWNER = (3, 1)
BOOT = 1_800_000_000


def put(spool, sequence, boot=BOOT, device=3):
    data = packet.encode_record(
        packet.Record(
            packet.LATENT, device, 1, boot, sequence, event=sequence, payload=bytes([sequence % 256] * 8)
        )
    )
    spool.record[: len(data)] = data
    return spool.append(len(data))


def forget(spool, sequence, boot=BOOT):
    key = struct.pack("<II", boot, sequence)
    slot = spool.find(key, 0, key, 4)
    if slot >= 0:
        spool.forget(slot)
    return slot >= 0


def waiting(spool):
    """(boot, sequence) of what waits, oldest first, as it stands on the flash."""
    found = []
    for i in range(spool.span):
        slot = (spool.oldest + i) % spool.n
        if spool.state[slot]:
            record = packet.decode_record(bytes(spool.record[: spool.read(slot)]))
            assert record.payload == bytes([record.sequence % 256] * 8)
            found.append((record.boot, record.sequence))
    assert len(found) == spool.waiting
    assert spool.first_key() == (found[0] if found else None)
    return found


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
    spool = Spool(path, n, OWNER)
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
            spool = Spool(path, n, OWNER)
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
    spool = Spool(path, 4, OWNER)
    for sequence in range(1, 7):
        put(spool, sequence)
        forget(spool, sequence)
    spool.close()
    again = Spool(path, 4, OWNER)
    assert (again.last_boot, again.last_event) == (BOOT, 6)
    assert waiting(again) == [(BOOT, 6)], "no acknowledgement is written; the centre keeps it once"


@pytest.mark.parametrize("cut_at", [0, 1, 6, 60, SLOT_BYTES - 1])
def test_a_write_that_was_cut_takes_no_other_record(path, cut_at):
    spool = Spool(path, 4, OWNER)
    for sequence in (1, 2, 3):
        put(spool, sequence)
    spool.close()
    with open(path, "r+b") as file:
        file.seek(2 * SLOT_BYTES + cut_at)
        rest = bytes(byte ^ 0xFF for byte in file.read(SLOT_BYTES - cut_at))
        file.seek(2 * SLOT_BYTES + cut_at)
        file.write(rest)
    again = Spool(path, 4, OWNER)
    assert waiting(again) == [(BOOT, 1), (BOOT, 2)]
    put(again, 1, BOOT + 1)
    assert waiting(again) == [(BOOT, 1), (BOOT, 2), (BOOT + 1, 1)]


def test_flash_that_goes_bad_under_a_record_gives_it_up(path):
    spool = Spool(path, 4, OWNER)
    slot = put(spool, 1)
    with open(path, "r+b") as file:
        file.seek(slot * SLOT_BYTES + 20)
        file.write(b"\xa5")
    assert spool.read(slot) == 0
    assert (spool.waiting, spool.dropped) == (0, 1)


def test_another_devices_spool_is_refused(path):
    spool = Spool(path, 4, OWNER)
    put(spool, 1)
    spool.close()
    with pytest.raises(OwnerError, match="records of device 3, survey 1, this is device 4, survey 1; remove"):
        Spool(path, 4, (4, 1))


def test_a_spool_keeps_its_size_and_says_so_until_its_file_is_removed(path, capsys):
    spool = Spool(path, 4, OWNER)
    put(spool, 1)
    spool.close()
    assert capsys.readouterr().out == ""
    kept = Spool(path, 8, OWNER)
    assert (kept.n, waiting(kept)) == (4, [(BOOT, 1)])
    assert "keeps its 4 records, not 8; remove the file once nothing waits" in capsys.readouterr().out
    kept.close()
    os.remove(path)
    fresh = Spool(path, 8, OWNER)
    for sequence in range(1, 9):
        put(fresh, sequence)
    assert fresh.waiting == 8


def test_half_a_file_is_made_anew(path):
    with open(path, "wb") as file:
        file.write(bytes(700))
    assert Spool(path, 4, OWNER).n == 4


def test_no_room_is_said(tmp_path):
    with pytest.raises(SpoolError, match="make room on the flash"):
        Spool(str(tmp_path / "away" / "spool.bin"), 4, OWNER)
