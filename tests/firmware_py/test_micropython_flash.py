"""The microcontroller's spool on raw flash, a card, littlefs: cut at any write it starts, loses nothing, wears evenly.

The same ring runs under real MicroPython in test_micropython_flash_board.py.
"""

import random

import pytest
from mcu_spool import BOOT, OWNER, forget, put, waiting
from nor import Cut, Nor

from firmware_py.micropython.config import ConfigError
from firmware_py.micropython.spool import OwnerError, Spool, SpoolError
from firmware_py.micropython.store import (
    SEGMENT_SLOTS,
    SLOT_BYTES,
    CardStore,
    FileStore,
    FlashStore,
    LittlefsStore,
)

BLOCKS = 16
RECORDS = 500
# Bytes done of the write or the erasure that is cut: nothing, part of the head, a page and a bit, all but the end.
TORN_BYTES = (0, 3, 300, SLOT_BYTES - 1, 3000)


def spool_on(nor):
    return Spool(FlashStore(nor, "flash"), OWNER)


class Life:
    """A device's storage life: starts, records, acknowledgements; what it knows to be kept."""

    def __init__(self, nor, seed=0):
        self.nor = nor
        self.rng = random.Random(seed)
        self.kept = []
        self.acknowledged = set()
        self.boot = BOOT
        self.sequence = 0
        self.spool = None

    def start(self):
        self.spool = spool_on(self.nor)
        self.boot = max(self.boot, self.spool.last_boot) + 1
        self.sequence = 0
        self.spool.start(self.boot, 1)

    def record(self):
        self.sequence += 1
        put(self.spool, self.sequence, self.boot)
        self.kept.append((self.boot, self.sequence))

    def acknowledge(self):
        """As by a centre that answers most records, some of them late."""
        while self.kept and (len(self.kept) > 40 or self.rng.random() < 0.6):
            key = self.kept.pop(0 if self.rng.random() < 0.9 else self.rng.randrange(len(self.kept)))
            assert forget(self.spool, key[1], key[0])
            self.acknowledged.add(key)


def test_cut_at_every_write_of_500_records_it_starts_and_loses_nothing():
    nor = Nor(BLOCKS)
    life = Life(nor)
    cuts = []

    def cut(block, offset, data):
        """What a start finds after a cut in the midst of this operation; the record under way may be there."""
        flash = nor.torn(block, offset, data, TORN_BYTES[len(cuts) % len(TORN_BYTES)])
        cuts.append(data)
        spool = spool_on(flash)
        found = waiting(spool)
        assert [key for key in life.kept if key not in found] == [], f"cut {len(cuts)}"
        # What comes back was stored once and is sent under its own key; the centre keeps each key once.
        assert set(found) - set(life.kept) <= life.acknowledged | {(life.boot, life.sequence)}
        assert len(set(found)) == len(found)
        boot = spool.last_boot + 1
        assert boot > max([boot for boot, _ in life.kept], default=0)
        spool.start(boot, 1)
        put(spool, 1, boot)
        assert waiting(spool) == [*found, (boot, 1)]

    nor.before = cut
    life.start()
    for _ in range(RECORDS):
        life.record()
        life.acknowledge()
    assert len(cuts) == RECORDS + 1 + -(-(RECORDS + 1) // 8), "every write and every erasure"


@pytest.mark.parametrize("seed", range(5))
def test_over_a_life_with_a_cut_every_few_records_no_block_wears_more_than_the_others(seed):
    """500 records and more, cut at random: kept, each under one key for ever, and the wear is even."""
    nor = Nor(BLOCKS)
    life = Life(nor, seed)
    rng = random.Random(seed)
    contents = {}
    stored = 0
    while stored < 6 * RECORDS:
        nor.left, nor.torn_bytes = rng.randrange(1, 80), rng.choice(TORN_BYTES)
        try:
            life.start()
            for key in waiting(life.spool):
                assert contents.setdefault(key, key) == key
                if key not in life.kept:
                    # Acknowledged before the cut, or written by the operation that was cut.
                    life.kept.append(key)
            assert set(life.kept) == set(waiting(life.spool))
            life.kept = waiting(life.spool)
            while True:
                life.record()
                stored += 1
                life.acknowledge()
        except Cut:
            pass
    mean = sum(nor.erases) / BLOCKS
    assert max(nor.erases) <= 1.2 * mean, (max(nor.erases), mean)
    assert nor.overwrites == 0


def test_the_wear_of_500_records():
    nor = Nor(BLOCKS)
    life = Life(nor)
    life.start()
    for _ in range(RECORDS):
        life.record()
        life.acknowledge()
    mean = sum(nor.erases) / BLOCKS
    assert max(nor.erases) <= 1.2 * mean, (max(nor.erases), mean)
    assert sum(nor.erases) == -(-(RECORDS + 1) // 8), "one erasure for eight slots"
    assert nor.writes == RECORDS + 1, "an acknowledgement writes nothing"


def test_a_full_ring_gives_up_a_block_of_its_oldest_and_counts_them():
    nor = Nor(4)
    spool = spool_on(nor)
    for sequence in range(1, 34):
        put(spool, sequence)
    assert (waiting(spool), spool.dropped) == ([(BOOT, sequence) for sequence in range(9, 34)], 8)
    assert waiting(spool_on(nor)) == waiting(spool)
    assert spool_on(nor).dropped == 8


def test_a_worn_block_is_passed_over_and_a_worn_flash_is_said():
    nor = Nor(4)
    nor.worn = (1,)
    spool = spool_on(nor)
    for sequence in range(1, 13):
        put(spool, sequence)
    assert waiting(spool) == [(BOOT, sequence) for sequence in range(1, 13)]
    assert waiting(spool_on(nor)) == waiting(spool)
    nor.worn = (0, 1, 2, 3)
    with pytest.raises(SpoolError, match="the flash is worn, replace the board"):
        put(spool, 13)


def test_marks_count_failed_starts_and_boots_and_are_never_sent():
    nor = Nor(4)
    for failed in range(3):
        spool = spool_on(nor)
        assert (spool.failed_starts, spool.last_boot) == (failed, BOOT + failed if failed else 0)
        spool.start(BOOT + failed + 1, failed + 1)
    spool.answered()
    assert spool_on(nor).failed_starts == 0
    put(spool, 1, BOOT + 3)
    spool.answered()
    put(spool, 2, BOOT + 3)
    again = spool_on(nor)
    assert (again.failed_starts, again.last_boot, again.last_event) == (0, BOOT + 3, 2)
    assert waiting(again) == [(BOOT + 3, 1), (BOOT + 3, 2)]


@pytest.mark.parametrize("data", [b"\xeb\xfe\x90MSDOS5.0" + bytes(500), bytes(range(256)) * 2])
def test_something_else_s_data_is_neither_read_nor_erased(data):
    nor = Nor(4)
    nor.data[4096 : 4096 + len(data)] = data
    with pytest.raises(OwnerError, match="expected a spool or blank flash, found something else's data"):
        spool_on(nor)
    assert not any(nor.erases)
    FlashStore(nor, "flash").clear()
    assert waiting(spool_on(nor)) == []


def test_another_device_s_flash_is_refused_and_so_is_another_size():
    nor = Nor(4)
    put(spool_on(nor), 1)
    with pytest.raises(OwnerError, match="holds records of device 3, survey 1, this is device 4"):
        Spool(FlashStore(nor, "flash"), (4, 1))
    nor.blocks = 3
    with pytest.raises(OwnerError, match="holds a spool of 32 slots, device.json asks for 24; set it back"):
        spool_on(nor)


@pytest.mark.parametrize(
    ("blocks", "block_bytes", "said"),
    [
        (4, 512, "expected erase blocks of 1024 bytes or more, got 512"),
        (1, 4096, "at least 2 erase blocks, got 1"),
    ],
)
def test_a_flash_that_cannot_be_a_ring_is_refused(blocks, block_bytes, said):
    with pytest.raises(ConfigError, match=said):
        FlashStore(Nor(blocks, block_bytes), "flash")


class Card:
    """A memory card: sectors that are written whole or not at all."""

    def __init__(self, sectors):
        self.data = bytearray(sectors * SLOT_BYTES)
        self.sectors = sectors

    def readblocks(self, n, buffer):
        buffer[:] = self.data[n * SLOT_BYTES :][: len(buffer)]

    def writeblocks(self, n, buffer):
        self.data[n * SLOT_BYTES : n * SLOT_BYTES + len(buffer)] = buffer

    def ioctl(self, op, argument):
        return {4: self.sectors, 5: SLOT_BYTES}.get(op, 0)


def test_a_card_holds_the_ring_in_its_first_sectors_and_no_file_system_is_overwritten():
    card = Card(1000)
    spool = Spool(CardStore(card, "card", 8), OWNER)
    for sequence in range(1, 11):
        put(spool, sequence)
    assert waiting(Spool(CardStore(card, "card", 8), OWNER)) == [
        (BOOT, sequence) for sequence in range(3, 11)
    ]
    assert not any(card.data[8 * SLOT_BYTES :])
    with pytest.raises(OwnerError, match="holds a spool of 8 slots, device.json asks for 16"):
        Spool(CardStore(card, "card", 16), OWNER)
    CardStore(card, "card", 8).clear()
    card.data[510:512] = b"\x55\xaa"
    with pytest.raises(OwnerError, match="something else's data"):
        Spool(CardStore(card, "card", 8), OWNER)


def test_on_littlefs_the_ring_goes_through_files_that_are_appended_to(tmp_path):
    folder = str(tmp_path / "spool")
    spool = Spool(LittlefsStore(folder, 100), OWNER)
    assert spool.n == 3 * SEGMENT_SLOTS
    for sequence in range(1, 3 * SEGMENT_SLOTS + 1):
        put(spool, sequence)
        if sequence % 7:
            assert forget(spool, sequence)
    sizes = [(tmp_path / "spool" / str(block)).stat().st_size for block in range(3)]
    assert sizes == [SEGMENT_SLOTS * SLOT_BYTES] * 3
    before = waiting(spool)
    put(spool, 3 * SEGMENT_SLOTS + 1)
    assert spool.dropped == SEGMENT_SLOTS // 7, "the first file is emptied as a whole"
    assert (tmp_path / "spool" / "0").stat().st_size == SLOT_BYTES
    spool.close()
    again = Spool(LittlefsStore(folder, 100), OWNER)
    assert waiting(again)[-1] == (BOOT, 3 * SEGMENT_SLOTS + 1)
    assert set(before[9:]) <= set(waiting(again))


def test_a_littlefs_spool_that_was_half_made_is_made_anew_and_one_that_is_there_keeps_its_size(
    tmp_path, capsys
):
    (tmp_path / "spool.new").mkdir()
    (tmp_path / "spool.new" / "0").touch()
    folder = str(tmp_path / "spool")
    assert Spool(LittlefsStore(folder, 64), OWNER).n == 2 * SEGMENT_SLOTS
    assert capsys.readouterr().out == ""
    store = LittlefsStore(folder, 256)
    assert Spool(store, OWNER).n == 2 * SEGMENT_SLOTS
    assert "keeps its 128 slots, for 256 records remove it once nothing waits" in capsys.readouterr().out
    store.clear()
    assert not (tmp_path / "spool").exists()


class Unseen(FileStore):
    """On a file system that shows another handle nothing before a flush, as littlefs."""

    def _is_stored(self, slot, buffer):
        return False


@pytest.mark.parametrize(("kind", "flushes"), [(FileStore, 0), (Unseen, 4)])
def test_a_file_is_flushed_only_where_the_file_system_needs_it(tmp_path, kind, flushes):
    store = kind(str(tmp_path / "records"), 16)
    flushed = []

    class Counting:
        def __init__(self, file):
            self.seek, self.write, self.readinto = file.seek, file.write, file.readinto

        def flush(self):
            flushed.append(1)

    store._file = Counting(store._file)
    spool = Spool(store, OWNER)
    spool.start(BOOT, 1)
    for sequence in range(1, 4):
        put(spool, sequence)
    assert len(flushed) == flushes


def test_a_boot_number_outlives_the_slots_that_a_torn_block_takes(tmp_path):
    path = tmp_path / "records"
    spool = Spool(FileStore(str(path), 16), OWNER)
    spool.start(BOOT, 1)
    spool.close()
    path.write_bytes(b"\xff" * 4096 + bytes(4096))
    assert Spool(FileStore(str(path), 16), OWNER).last_boot == BOOT
