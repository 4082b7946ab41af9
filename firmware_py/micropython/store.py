"""Store a spool's slots of 512 bytes on raw flash, a raw card, littlefs, or in a file that is overwritten in place.

A store has ``slots`` slots, of which ``per_block`` are erased together. A slot is written once after its block was
erased; ``per_block`` is 1 where a slot can be written again as it is.

    read(slot, buffer)   fill 512 bytes; False beyond what was ever written
    write(slot, buffer)  True if the slot now holds the bytes; False if another slot has to take them
    erase(block)         make the slots of a block writable
    note_boot(boot)      keep a boot number beside the slots, where a cut may take the newest ones; then
    last_boot            is the greatest that was kept
    clear()              forget everything
    close()

On return from ``write`` the slot survives a power cut.

``device.json`` chooses the kind:

    {"kind": "flash", "path": "spool"}                        data partition of an ESP32 by its label
    {"kind": "flash", "start": 4194304, "bytes": 262144}      range of pyb.Flash or rp2.Flash
    {"kind": "card", "path": "", "records": 4096}             machine.SDCard(), or open_device() of the module "path"
    {"kind": "littlefs", "path": "spool", "records": 256}     folder of files that are appended to
    {"kind": "file", "path": "spool/records", "records": 256, "stride": 4096}
"""

import os

from firmware_py.micropython.boot_counter import COPY_BYTES, BootCount, exists, sync
from firmware_py.micropython.config import ConfigError, load_config

SLOT_BYTES = 512
# Depths and slot numbers have 16 bits.
MAX_SLOTS = 65535
# Slots in each file of a littlefs store.
SEGMENT_SLOTS = 64
# Block device protocol: begin with the extended interface, count, size, erase.
_INIT, _COUNT, _SIZE, _ERASE = 1, 4, 5, 6
_EXTENDED = 1


class Store:
    """Base of the stores; a ``raw`` one may hold the data of another program."""

    per_block = 1
    raw = False
    last_boot = 0
    # Message for the operator, printed once the spool is known to be this device's.
    note = ""

    def note_boot(self, boot):
        pass

    def erase(self, block):
        pass

    def close(self):
        pass

    def _note_size(self, records):
        self.note = "spool: %s keeps its %d slots, for %d records remove it once nothing waits" % (
            self.place,
            self.slots,
            records,
        )


class FlashStore(Store):
    """Raw NOR flash behind MicroPython's extended block protocol.

    A write only clears bits; ``ioctl(6)`` sets a block's bits. Each slot is written once, in one piece that is
    aligned to the flash's pages (256 bytes on rp2), and read back.

    Raises:
        ConfigError: The device is no flash with erase blocks.
    """

    raw = True

    def __init__(self, device, place):
        self.place = place
        self._device = device
        # pyb.Flash then counts in the flash's own blocks; the others ignore it.
        device.ioctl(_INIT, _EXTENDED)
        block_bytes = device.ioctl(_SIZE, 0)
        if block_bytes < 2 * SLOT_BYTES or block_bytes % SLOT_BYTES:
            raise ConfigError(
                "spool: %s: expected erase blocks of 1024 bytes or more, got %d; such a flash rewrites whole sectors"
                " for each record, take kind file" % (place, block_bytes)
            )
        self.per_block = block_bytes // SLOT_BYTES
        blocks = min(device.ioctl(_COUNT, 0), MAX_SLOTS // self.per_block)
        if blocks < 2:
            raise ConfigError("spool: %s: expected at least 2 erase blocks, got %d" % (place, blocks))
        self.slots = blocks * self.per_block
        self._found = bytearray(SLOT_BYTES)

    def read(self, slot, buffer):
        self._device.readblocks(slot // self.per_block, buffer, slot % self.per_block * SLOT_BYTES)
        return True

    def write(self, slot, buffer):
        try:
            # pyb.Flash returns an error's number, the others raise it.
            if self._device.writeblocks(slot // self.per_block, buffer, slot % self.per_block * SLOT_BYTES):
                return False
            self.read(slot, self._found)
        except OSError:
            return False
        return self._found == buffer

    def erase(self, block):
        try:
            self._device.ioctl(_ERASE, block)
        except OSError:
            # A worn block. Its slots then fail one by one, and the next block is taken.
            pass

    def clear(self):
        for block in range(self.slots // self.per_block):
            self.erase(block)


class CardStore(Store):
    """A memory card without a file system, one slot a sector; the card levels its wear itself."""

    raw = True

    def __init__(self, device, place, records):
        self.place = place
        self._device = device
        self.slots = min(records, device.ioctl(_COUNT, 0))

    def read(self, slot, buffer):
        self._device.readblocks(slot, buffer)
        return True

    def write(self, slot, buffer):
        if self._device.writeblocks(slot, buffer):
            raise OSError("writeblocks")
        return True

    def clear(self):
        blank = bytes(SLOT_BYTES)
        for slot in range(self.slots):
            self.write(slot, blank)


class LittlefsStore(Store):
    """A folder of files, each a block of slots that is appended to, for littlefs.

    littlefs copies what follows a change in a file, so that a slot in the middle of a large file costs the rest of
    it; an appended slot costs one block. What was flushed survives any cut. A folder keeps its number of files,
    whatever ``records`` is.
    """

    per_block = SEGMENT_SLOTS

    def __init__(self, folder, records):
        self.place = folder
        if not exists(folder):
            # Under a temporary name: half a folder must not be taken for a small spool.
            aside = folder + ".new"
            _remove_folder(aside)
            os.mkdir(aside)
            # One more than asked for, since a file is emptied as a whole.
            for block in range((records + SEGMENT_SLOTS - 1) // SEGMENT_SLOTS + 1):
                open(_segment(aside, block), "wb").close()
            os.rename(aside, folder)
        self._files = []
        while exists(_segment(folder, len(self._files))):
            self._files.append(open(_segment(folder, len(self._files)), "r+b"))
        self.slots = len(self._files) * SEGMENT_SLOTS
        if self.slots - SEGMENT_SLOTS < records:
            self._note_size(records)

    def read(self, slot, buffer):
        file = self._files[slot // SEGMENT_SLOTS]
        file.seek(slot % SEGMENT_SLOTS * SLOT_BYTES)
        return file.readinto(buffer) == SLOT_BYTES

    def write(self, slot, buffer):
        file = self._files[slot // SEGMENT_SLOTS]
        file.seek(slot % SEGMENT_SLOTS * SLOT_BYTES)
        file.write(buffer)
        file.flush()
        return True

    def erase(self, block):
        self._files[block].close()
        self._files[block] = open(_segment(self.place, block), "w+b")

    def clear(self):
        self.close()
        _remove_folder(self.place)

    def close(self):
        for file in self._files:
            file.close()


class FileStore(Store):
    """One file of fixed size, whose slots are overwritten in place, for FAT.

    Nothing but slots is written after the file was made. FAT writes a whole sector of it at once; what a flush
    rewrites is the directory entry, and a cut there would lose the folder, so there is none where the file system
    can do without. ``.starts`` and ``.pad`` lie before and behind the file, so that a torn erase block of 4096 bytes
    holds nothing else. A file keeps its size, whatever ``records`` is.

    Slots begin ``stride`` bytes apart. With a stride of an erase block, 4096, a torn one holds no second slot. At 512,
    it takes the stored records of 8 slots along.

    Raises:
        ConfigError: The stride is no multiple of a slot.
    """

    def __init__(self, path, records, stride=SLOT_BYTES):
        self.place = path
        if stride % SLOT_BYTES:
            raise ConfigError("spool: stride %d: expected a multiple of %d" % (stride, SLOT_BYTES))
        self._stride = stride
        try:
            size = os.stat(path)[6]
        except OSError:
            size = 0
        folder = path.rpartition("/")[0]
        # Not for a card that is not mounted: its folder would be made in the program's file system.
        if folder and not folder.startswith("/") and not exists(folder):
            os.mkdir(folder)
        self._starts = BootCount(path + ".starts")
        if size == 0 or size % stride:
            # Under a temporary name: half a file must not be taken for a small spool.
            _fill(path + ".new", records * stride)
            _rename(path + ".new", path)
            _fill(path + ".pad", COPY_BYTES)
            size = records * stride
        self.slots = size // stride
        self.last_boot = self._starts.last
        self._file = open(path, "r+b", 0)
        self._byte = bytearray(1)
        self._flushes = None
        if self.slots != records:
            self._note_size(records)

    def note_boot(self, boot):
        self._starts.write(boot)

    def read(self, slot, buffer):
        self._file.seek(slot * self._stride)
        return self._file.readinto(buffer) == SLOT_BYTES

    def write(self, slot, buffer):
        self._file.seek(slot * self._stride)
        self._file.write(buffer)
        # A sector that is larger than a slot leaves the file's buffer when another is read.
        self._file.seek((slot + self.slots // 2) % self.slots * self._stride)
        self._file.readinto(self._byte)
        if self._flushes is None:
            self._flushes = not self._is_stored(slot, buffer)
        if self._flushes:
            self._file.flush()
        sync()
        return True

    def _is_stored(self, slot, buffer):
        """Return True if another file handle reads back what was just written."""
        try:
            with open(self.place, "rb") as file:
                file.seek(slot * self._stride)
                return file.read(SLOT_BYTES) == buffer
        except OSError:
            return False

    def clear(self):
        self.close()
        for end in ("", ".pad", ".starts"):
            os.remove(self.place + end)

    def close(self):
        self._file.close()
        self._starts.close()


def open_store(section):
    """The store of section ``spool`` in ``device.json``.

    Raises:
        ConfigError: This board has none of the kind.
        OSError: It cannot be opened.
    """
    kind, path = section["kind"], section["path"]
    if kind == "flash":
        return FlashStore(*_flash(path, section["start"], section["bytes"]))
    if kind == "card":
        return CardStore(_card(path), "card", section["records"])
    if kind == "littlefs":
        return LittlefsStore(path or "spool", section["records"])
    return FileStore(path or "spool.bin", section["records"], section["stride"])


def wipe(path="device.json"):
    """Erase the spool that ``device.json`` names, with the records that wait in it."""
    open_store(load_config(path)["spool"]).clear()


def _flash(label, start, size):
    """The flash as a block device, and its name in messages."""
    if label:
        try:
            from esp32 import Partition
        except ImportError:
            raise ConfigError(
                "spool: path %r: only an ESP32 has named partitions; give start and bytes" % label
            ) from None
        found = Partition.find(Partition.TYPE_DATA, label=label)
        if not found:
            raise ConfigError(
                "spool: no data partition %r in this board's flash; take kind littlefs, or write a partition table"
                " that has it" % label
            )
        return found[0], "partition %s" % label
    try:
        from pyb import Flash
    except ImportError:
        try:
            from rp2 import Flash
        except ImportError:
            raise ConfigError(
                "spool: this board gives no access to its raw flash; take another kind"
            ) from None
    place = "flash from %d" % start
    try:
        return Flash(start=start, len=size), place
    except ValueError:
        raise ConfigError(
            "spool: %s: the board has no range of %d bytes there, in whole erase blocks" % (place, size)
        ) from None


def _card(name):
    if not name:
        try:
            from machine import SDCard
        except ImportError:
            raise ConfigError(
                "spool: no machine.SDCard on this board; name a module with open_device() as path"
            ) from None
        return SDCard()
    try:
        return __import__(name).open_device()
    except (ImportError, AttributeError) as error:
        raise ConfigError("spool: expected a module %r with open_device (%r)" % (name, error)) from None


def _segment(folder, block):
    return "%s/%d" % (folder, block)


def _remove_folder(folder):
    if exists(folder):
        for name in os.listdir(folder):
            os.remove("%s/%s" % (folder, name))
        os.rmdir(folder)


def _fill(path, size):
    blank = bytes(SLOT_BYTES)
    with open(path, "wb") as file:
        for _ in range(size // SLOT_BYTES):
            file.write(blank)


def _rename(old, new):
    # FAT does not replace an existing file.
    if exists(new):
        os.remove(new)
    os.rename(old, new)
