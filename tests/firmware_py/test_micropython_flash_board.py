"""A spool under real MicroPython, with its own littlefs and FAT on a simulated NOR flash, cut at any write."""

import json

import micropython_unix
import pytest

pytestmark = pytest.mark.emulated
SUPPORT = micropython_unix.ROOT / "tests" / "support"

SCRIPT = """
import json
from board_storage import Life, Medium
from firmware_py.micropython.store import FileStore, FlashStore, LittlefsStore

medium = Medium({kind!r}, {blocks}, lambda nor: {store}, {holds_back})
life = Life(medium)
life.run({records})
print(json.dumps({{"tally": life.tally, "erases": life.erases, "writes": life.writes}}))
"""


def run(kind, blocks, store, records, holds_back=False):
    script = SCRIPT.format(kind=kind, blocks=blocks, store=store, records=records, holds_back=holds_back)
    path = f"{micropython_unix.ROOT}:{SUPPORT}:.frozen"
    said = micropython_unix.run(SUPPORT, script, heap="16m", path=path, timeout_s=600.0)
    return json.loads(said.splitlines()[-1])


WHOLE = {"program": 0, "start": 0, "boot": 0, "records": 0, "lost": 0, "twice": 0}


@pytest.mark.slow
def test_raw_flash_cut_at_every_write_of_500_records():
    found = run("raw", 16, "FlashStore(nor, 'flash')", 500)
    assert found["tally"] == {**WHOLE, "cuts": found["writes"] + sum(found["erases"])}
    assert max(found["erases"]) <= 1.2 * sum(found["erases"]) / 16
    assert found["writes"] == 501


def test_littlefs_cut_at_every_write():
    found = run("littlefs", 64, "LittlefsStore('spool', 64)", 40)
    assert found["tally"] == {**WHOLE, "cuts": found["writes"] + sum(found["erases"])}
    assert sum(found["erases"]) < 1.5 * 41


@pytest.mark.parametrize("holds_back", [False, True], ids=["writes at once", "holds back"])
def test_a_file_on_fat_with_an_erase_block_for_each_slot_loses_nothing(holds_back):
    found = run("fat", 128, "FileStore('spool/records', 64, 4096)", 80, holds_back)
    assert found["tally"] == {**WHOLE, "cuts": found["writes"] + sum(found["erases"])}
    assert sum(found["erases"]) == 80 + 2
    assert max(found["erases"]) == 2, "a slot each, one round and a quarter"


def test_a_dense_file_on_fat_cut_at_every_write_costs_at_most_its_erase_block_and_never_the_program():
    found = run("fat", 64, "FileStore('spool/records', 64)", 40)
    tally = found["tally"]
    assert tally["cuts"] == found["writes"] + sum(found["erases"])
    assert (tally["program"], tally["start"], tally["boot"], tally["twice"]) == (0, 0, 0, 0)
    assert tally["lost"] <= 8
    # The directory and the table of FAT are not written: a record costs one erasure, a start two more.
    assert sum(found["erases"]) == 40 + 2
    assert max(found["erases"]) <= 8


NO_MEMORY = """
import micropython
import board_storage
from firmware_py.micropython.spool import Spool
from firmware_py.micropython.store import FlashStore

class Flash:
    '''Without slices, which allocate here and not on a board, whose flash is read by C code.'''
    data = bytearray(b"\\xff" * 8192)
    def readblocks(self, block, buffer, offset):
        for i in range(len(buffer)):
            buffer[i] = self.data[block * 4096 + offset + i]
    def writeblocks(self, block, buffer, offset):
        for i in range(len(buffer)):
            self.data[block * 4096 + offset + i] &= buffer[i]
    def ioctl(self, op, argument):
        if op == 6:
            for i in range(4096):
                self.data[argument * 4096 + i] = 255
        return (0, 0, 0, 0, 2, 4096, 0)[op]

spool = Spool(FlashStore(Flash(), "flash"), (3, 1))
for sequence in range(1, 12):
    board_storage.put(spool, 7, sequence)
size = spool.read(2)

def turns():
    for _ in range(20):
        slot = spool.append(size)
        if spool.read(slot) != size:
            raise ValueError
        spool.forget(slot)

turns()
micropython.heap_lock()
turns()
micropython.heap_unlock()
print("kept", spool.waiting)
"""


def test_a_record_takes_no_memory_in_the_spool():
    path = f"{micropython_unix.ROOT}:{SUPPORT}:.frozen"
    assert micropython_unix.run(SUPPORT, NO_MEMORY, path=path).strip() == "kept 0"
