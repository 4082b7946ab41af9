"""Storage of a board under MicroPython with a power cut at every write; run by test_micropython_flash_board.py.

The storage holds a program and a bundle, which nothing writes after the installation, then the starts and records of a
device. At each erasure and write of the flash a copy of it is torn, and the copy is then started and checked.
"""

import os
import struct

import vfs
from nor import Nor

from firmware_py.micropython import boot_counter
from firmware_py.micropython.spool import Spool
from firmware_py.protocol import packet

OWNER = (3, 1)
BLOCK_BYTES = 4096
SECTOR_BYTES = 512
PROGRAM = {"main.py": b"p" * 900, "bundle": bytes(range(256)) * 80}
# Completed bytes of an operation that is cut.
TORN_BYTES = (0, 3, 300, 511, 3000)
FIRST_BOOT = 100
# Number of records that wait behind the newest.
WAIT = 20


class CachedNor:
    """Sectors of 512 bytes on a NOR flash, as a port's driver for FAT has them: a write rewrites the erase block.

    With ``holds_back``, as on stm32, the block is rewritten once another is written to, or at a sync.
    """

    def __init__(self, nor, holds_back=False):
        self.nor = nor
        self.holds_back = holds_back
        self.block = bytearray(BLOCK_BYTES)
        self.held = None

    def readblocks(self, n, buffer):
        at = n * SECTOR_BYTES
        for done in range(0, len(buffer), SECTOR_BYTES):
            block, offset = divmod(at + done, BLOCK_BYTES)
            if block == self.held:
                buffer[done : done + SECTOR_BYTES] = self.block[offset : offset + SECTOR_BYTES]
            else:
                buffer[done : done + SECTOR_BYTES] = self.nor.data[at + done : at + done + SECTOR_BYTES]

    def writeblocks(self, n, buffer):
        done = 0
        while done < len(buffer):
            block, offset = divmod(n * SECTOR_BYTES + done, BLOCK_BYTES)
            size = min(len(buffer) - done, BLOCK_BYTES - offset)
            if block != self.held:
                self.sync()
                self.nor.readblocks(block, self.block)
            self.block[offset : offset + size] = buffer[done : done + size]
            self.held = block
            if not self.holds_back:
                self.sync()
            done += size

    def sync(self):
        held, self.held = self.held, None
        if held is not None:
            self.nor.writeblocks(held, self.block)

    def ioctl(self, op, argument):
        if op == 3:
            self.sync()
        if op == 4:
            return self.nor.blocks * BLOCK_BYTES // SECTOR_BYTES
        return SECTOR_BYTES if op == 5 else 0


class Medium:
    """``kind`` is fat, littlefs, or raw for no file system; ``store(nor)`` opens the spool's store there.

    With ``holds_back``, FAT's driver does, and ``boot_counter.sync`` is the port's.
    """

    def __init__(self, kind, blocks, store, holds_back=False):
        self.kind = kind
        self.holds_back = holds_back
        self.store = store
        self.synced = []
        self.nor = Nor(blocks)
        if kind == "raw":
            return
        if kind == "fat":
            vfs.VfsFat.mkfs(CachedNor(self.nor))
        else:
            vfs.VfsLfs2.mkfs(self.nor, progsize=256)
        self.mount(self.nor, "/flash")
        for path, data in PROGRAM.items():
            with open(path, "wb") as file:
                file.write(data)

    def mount(self, nor, place):
        if self.kind != "raw":
            if self.kind == "fat":
                device = CachedNor(nor, self.holds_back)
                self.synced.append(boot_counter._sync)
                boot_counter._sync = device.sync
                vfs.mount(vfs.VfsFat(device), place)
            else:
                vfs.mount(vfs.VfsLfs2(nor, progsize=256), place)
            os.chdir(place)

    def unmount(self, place):
        if self.kind != "raw":
            os.chdir("/")
            vfs.umount(place)
            if self.synced:
                boot_counter._sync = self.synced.pop()
            if place != "/flash":
                os.chdir("/flash")

    def program_is_whole(self):
        if self.kind == "raw":
            return True
        for path, data in PROGRAM.items():
            with open(path, "rb") as file:
                if file.read() != data:
                    return False
        return True


def start(medium, nor):
    """As start.py does: the boot number is noted before anything is sent under it."""
    spool = Spool(medium.store(nor), OWNER)
    boot = max(spool.last_boot, FIRST_BOOT) + 1
    spool.start(boot, 1)
    return spool, boot


def put(spool, boot, sequence):
    record = packet.Record(packet.LATENT, 3, 1, boot, sequence, event=sequence, payload=b"x" * 64)
    data = packet.encode_record(record)
    spool.record[: len(data)] = data
    spool.append(len(data))


def waiting(spool):
    keys = []
    for i in range(spool.span):
        slot = (spool.oldest + i) % spool.n
        if spool.state[slot]:
            assert spool.read(slot)
            keys.append(struct.unpack_from("<II", spool.record, 8))
    return keys


class Life:
    """Starts and records on a medium; ``tally`` counts the cuts, and after how many of them something was missing."""

    def __init__(self, medium):
        self.medium = medium
        self.kept = []
        self.boot = FIRST_BOOT
        self.tally = {"cuts": 0, "program": 0, "start": 0, "boot": 0, "records": 0, "lost": 0, "twice": 0}

    def run(self, records):
        nor = self.medium.nor
        # The first start makes the spool, while the installer watches.
        spool, self.boot = start(self.medium, nor)
        spool.close()
        nor.erases = [0] * nor.blocks
        nor.writes = 0
        nor.before = self._cut
        spool, self.boot = start(self.medium, nor)
        for sequence in range(1, records + 1):
            put(spool, self.boot, sequence)
            self.kept.append((self.boot, sequence))
            if len(self.kept) > WAIT:
                key = struct.pack("<II", *self.kept[0])
                slot = spool.find(key, 0, key, 4)
                assert slot >= 0
                spool.forget(slot)
                self.kept.pop(0)
        nor.before = None
        # A device never closes its spool.
        self.erases, self.writes = list(nor.erases), nor.writes
        spool.close()

    def _cut(self, block, offset, data):
        tally = self.tally
        torn_bytes = TORN_BYTES[tally["cuts"] % len(TORN_BYTES)]
        tally["cuts"] += 1
        nor = self.medium.nor.torn(block, offset, data, torn_bytes)
        try:
            self.medium.mount(nor, "/cut")
        except OSError:
            # A port would format it.
            tally["program"] += 1
            return
        try:
            if not self.medium.program_is_whole():
                tally["program"] += 1
            spool, boot = start(self.medium, nor)
            if boot <= self.boot and self.kept:
                tally["boot"] += 1
            found = waiting(spool)
            missing = len([key for key in self.kept if key not in found])
            tally["records"] += 1 if missing else 0
            tally["lost"] = max(tally["lost"], missing)
            tally["twice"] += len(found) - len(set(found))
            put(spool, boot, 1)
            spool.close()
        except OSError:
            tally["start"] += 1
        self.medium.unmount("/cut")
