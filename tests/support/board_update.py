"""An update of a board over its link under MicroPython with a power cut at every block write; run by a test.

The FAT has a program, and the slots as the installer makes them. The centre is played, and hands out the archive.
At each erasure and write a copy of the flash is torn, and the copy is then started and finishes the update.
"""

import binascii
import hashlib
import json
import os

import vfs
from board_storage import BLOCK_BYTES, TORN_BYTES, CachedNor
from nor import Nor

from firmware_py.micropython import boot_counter, updates
from firmware_py.micropython.padding import end_of, length_of
from firmware_py.micropython.slots import NOTE_BYTES, Slots
from firmware_py.micropython.updates import Updater, encode
from firmware_py.protocol import packet

PROGRAM = {"main.py": b"m" * 450, "device.json": b"d" * 300, "firmware_py/start.mpy": bytes(range(256)) * 20}
BUNDLES = [
    {"manifest.json": b"{}" * 300, "encoder.epicnn": bytes(range(255)) * 90},
    {"manifest.json": b"[]" * 290, "encoder.epicnn": bytes(range(253)) * 101},
    {"manifest.json": b"()" * 310, "encoder.epicnn": bytes(range(251)) * 80},
]
SIGNATURE = b"s" * 64
updates.verify = lambda *arguments: True


class Switched(Exception):
    """The board restarts with the update."""


def switched():
    raise Switched


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path, whole=True):
    try:
        with open(path, "rb") as file:
            return file.read() if whole else file.read(length_of(file))
    except OSError:
        return None


def padded(data):
    room = len(data) + 5000
    return data + bytes(room - len(data)) + end_of(len(data)) + bytes(2 * BLOCK_BYTES - 512)


class Board:
    """A board; ``shift`` moves its slots by sectors against the flash's erase blocks."""

    def __init__(self, blocks, holds_back, in_place, shift):
        self.holds_back = holds_back
        self.nor = Nor(blocks)
        vfs.VfsFat.mkfs(CachedNor(self.nor))
        self.mount(self.nor, "/flash")
        for folder in ("firmware_py", "bundle", "bundle.b"):
            os.mkdir(folder)
        for path, data in PROGRAM.items():
            put(path, data)
        put("sums", bytes(512 * (1 + shift)))
        if in_place:
            put("slots.0", b" " * NOTE_BYTES)
            put("slots.1", b" " * NOTE_BYTES)
        for folder in ("bundle", "bundle.b") if in_place else ("bundle",):
            if in_place:
                put(folder + "/offer", b" " * NOTE_BYTES)
            for name, data in BUNDLES[0].items():
                put(folder + "/" + name, padded(data) if in_place else data)

    def mount(self, nor, place):
        device = CachedNor(nor, self.holds_back)
        boot_counter._sync = device.sync
        vfs.mount(vfs.VfsFat(device), place)
        os.chdir(place)
        return device


NAMES = sorted(BUNDLES[0])


def statement(version):
    files = []
    for name in NAMES:
        data = BUNDLES[version][name]
        digest = binascii.hexlify(hashlib.sha256(data).digest()).decode()
        files.append({"name": name, "bytes": len(data), "sha256": digest})
    return json.dumps({"format": updates.FORMAT, "version": version, "boards": [], "files": files}).encode()


def archive(version):
    files = b"".join([BUNDLES[version][name] for name in NAMES])
    return bytes(updates.HEAD_BYTES) + statement(version) + SIGNATURE + files


class Message:
    def __init__(self, value):
        self.payload = encode(value)


def update(slots, version, most=1000):
    """Update to ``version``; return the chunks that were asked for, and whether it switched."""
    header = packet.Record(packet.LATENT, 0, 1, 1, 0)
    updater = Updater(slots, header, b"k" * 32, "a-board", NAMES, 600, lambda: None, switched)
    data, sha256 = archive(version), bytes([version] * 32)
    offer = {"sha256": sha256, "version": version, "statement": statement(version), "signature": SIGNATURE}
    asked = 0
    try:
        updater.handle(Message({"offer": offer}))
        while asked < most and not slots.failure:
            want = updater._next()
            if "want" not in want:
                break
            at, length = want["want"]["offset"], want["want"]["length"]
            asked += 1
            updater.handle(
                Message({"chunk": {"sha256": sha256, "offset": at, "data": data[at : at + length]}})
            )
    except Switched:
        return asked, True
    return asked, False


def holds(folder, bundle):
    return all(read(folder + "/" + name, False) == data for name, data in bundle.items())


class Life:
    """Two updates; the one to ``version`` is cut at every ``step``-th write. ``cost`` counts what the cuts cost.

    With ``every``, each is cut after each of ``TORN_BYTES``.
    """

    def __init__(self, holds_back, in_place=True, step=1, every=False, version=1, shift=0):
        self.board = Board(64, holds_back, in_place, shift)
        self.version = version
        self.step = step
        self.cuts = self.copies = 0
        self.every = every
        self.most = 0
        self.cost = {"program": 0, "bundle": 0, "stuck": 0}
        # The handles are never closed.
        self.slots = []

    def run(self):
        nor = self.board.nor
        for version in range(1, self.version + 1):
            nor.before = self._cut if version == self.version else None
            self.slots.append(Slots("bundle"))
            self.asked, done = update(self.slots[-1], version)
            assert done
            self.slots.append(Slots("bundle"))
            self.slots[-1].begin()
            self.slots[-1].confirm()
        nor.before = None

    def _cut(self, block, offset, data):
        self.cuts += 1
        if self.cuts % self.step:
            return
        in_turn = TORN_BYTES[self.cuts // self.step % len(TORN_BYTES)]
        for torn_bytes in TORN_BYTES if self.every else (in_turn,):
            self._cut_after(torn_bytes, block, offset, data)

    def _cut_after(self, torn_bytes, block, offset, data):
        nor = self.board.nor.torn(block, offset, data, torn_bytes)
        self.copies += 1
        sync = boot_counter._sync
        try:
            self.board.mount(nor, "/cut")
        except OSError:
            # A port would format it.
            self.cost["program"] += 1
            return
        try:
            self._check()
        except OSError:
            self.cost["program"] += 1
        os.chdir("/")
        vfs.umount("/cut")
        os.chdir("/flash")
        boot_counter._sync = sync

    def _check(self):
        if any(read(path) != data for path, data in PROGRAM.items()):
            self.cost["program"] += 1
            return
        slots = Slots("bundle")
        self.slots.append(slots)
        usable = slots.version in (self.version - 1, self.version)
        if not usable or not holds(slots.folder, BUNDLES[slots.version]):
            self.cost["bundle"] += 1
            return
        if slots.version < self.version:
            if slots.on_trial:
                slots.confirm()
            asked, done = update(slots, self.version)
            self.most = max(self.most, asked)
            if not done or not holds(slots.folder, BUNDLES[self.version]):
                self.cost["stuck"] += 1
