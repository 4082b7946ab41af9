"""Store records in flash until the centre has them: a ring of slots in one file of fixed size.

A slot is one sector of an SD card, so that writing one never touches another. It is written before its record is
sent and never after: an acknowledgement is kept in memory alone. In its stead each slot says how far back from it
records still waited when it was written. After a cut those are sent again, and the centre keeps each once.

    offset size field
    0      2    slots before this one back to the oldest record that waits
    2      4    records given up for want of room, ever
    6      ...  the record, as packet.py has it
    508    4    CRC-32 of all before

On the flash of the chip itself a cut in the middle of a write may take the whole erase block, 4 KiB or 8 slots.
"""

import binascii
import os
import struct

from firmware_py.protocol import packet

SLOT_BYTES = 512
HEAD = "<HI"
HEAD_BYTES = 6
CRC_AT = 508
MAX_RECORD_BYTES = CRC_AT - HEAD_BYTES
# Constant CRC-32 of data followed by its own CRC-32; a small integer on every board.
_CRC_OF_WHOLE = 0x2144DF1C
# Offsets of device and survey, then of boot and sequence, in a record's header.
_OWNER = 4
_KEY = 8
_KEY_BYTES = 8

FREE = 0
WAITING = 1


class SpoolError(OSError):
    """The spool cannot be used."""


class OwnerError(SpoolError):
    """The spool belongs to another device."""


class Spool:
    """Durable ring of ``n`` slots (at least 2).

    ``append`` and ``read`` use ``buffer`` for their slot. The ``span`` slots from ``oldest`` on may hold waiting
    records; ``state`` says which do. ``last_boot`` and ``last_event`` are those of the newest record, 0 for none. An
    existing file keeps its size, whatever ``n`` is.

    Raises:
        SpoolError: The file cannot be used.
    """

    def __init__(self, path, n, owner):
        self._path = path
        self.n = n
        self.buffer = bytearray(SLOT_BYTES)
        # The record's part of the buffer.
        self.record = memoryview(self.buffer)[HEAD_BYTES:CRC_AT]
        self._before_crc = memoryview(self.buffer)[:CRC_AT]
        self.dropped = 0
        self.waiting = 0
        self.oldest = 0
        self.span = 0
        self.last_boot = 0
        self.last_event = 0
        try:
            self._open(n)
            self._recover(owner)
        except SpoolError:
            raise
        except OSError as error:
            raise SpoolError(
                "%s: cannot keep a spool there (%r); make room on the flash" % (path, error)
            ) from None
        if self.n != n:
            print(
                "spool: %s keeps its %d records, not %d; remove the file once nothing waits"
                % (path, self.n, n)
            )

    def _open(self, n):
        """Open the file at its full size, so that later writes always have space."""
        try:
            size = os.stat(self._path)[6]
        except OSError:
            size = 0
        if size == 0 or size % SLOT_BYTES:
            # Created under a temporary name: an incomplete file must not be taken for a small spool.
            aside = self._path + ".new"
            with open(aside, "wb") as file:
                for _ in range(n):
                    file.write(bytes(SLOT_BYTES))
            _rename(aside, self._path)
            size = n * SLOT_BYTES
        self.n = size // SLOT_BYTES
        self.state = bytearray(self.n)
        self._keys = bytearray(self.n * _KEY_BYTES)
        self._file = open(self._path, "r+b")

    def _recover(self, owner):
        """Find the newest record, and from it the records that may still wait."""
        newest = -1
        newest_key = (0, 0)
        depth = 0
        for slot in range(self.n):
            if not self._load(slot):
                continue
            _, _, _, device, survey, boot, sequence, event = struct.unpack_from("<2sBBHHIII", self.record)
            if (device, survey) != owner:
                raise OwnerError(
                    "%s: holds records of device %d, survey %d, this is device %d, survey %d; remove the file"
                    % (self._path, device, survey, owner[0], owner[1])
                )
            self._note_key(slot)
            self.state[slot] = WAITING
            if (boot, sequence) > newest_key:
                newest = slot
                newest_key = (boot, sequence)
                self.last_boot = boot
                self.last_event = event
                depth, self.dropped = struct.unpack_from(HEAD, self.buffer)
        if newest < 0:
            return
        self.span = min(depth + 1, self.n)
        self.oldest = (newest - self.span + 1) % self.n
        for i in range(self.span, self.n):
            self.state[(self.oldest + i) % self.n] = FREE
        for state in self.state:
            self.waiting += state
        self._shorten()

    def _load(self, slot):
        """Read a slot into the buffer; return False if it holds no intact record."""
        self._file.seek(slot * SLOT_BYTES)
        if self._file.readinto(self.buffer) != SLOT_BYTES:
            return False
        return binascii.crc32(self.buffer) == _CRC_OF_WHOLE

    def _note_key(self, slot):
        at = slot * _KEY_BYTES
        for i in range(_KEY_BYTES):
            self._keys[at + i] = self.record[_KEY + i]

    def append(self, size):
        """Store the record of ``size`` bytes in ``record``; return its slot. On return it is on the flash.

        A full ring drops its oldest record and counts it.

        Raises:
            SpoolError: The flash cannot be written.
        """
        if self.span == self.n:
            if self.state[self.oldest]:
                self.state[self.oldest] = FREE
                self.waiting -= 1
                self.dropped += 1
            self._shorten()
        slot = (self.oldest + self.span) % self.n
        struct.pack_into(HEAD, self.buffer, 0, self.span, self.dropped)
        for i in range(size, MAX_RECORD_BYTES):
            self.record[i] = 0
        struct.pack_into("<I", self.buffer, CRC_AT, binascii.crc32(self._before_crc))
        try:
            self._file.seek(slot * SLOT_BYTES)
            self._file.write(self.buffer)
            self._file.flush()
        except OSError as error:
            raise SpoolError("%s: cannot be written (%r); replace the card" % (self._path, error)) from None
        self._note_key(slot)
        self.state[slot] = WAITING
        self.waiting += 1
        self.span += 1
        return slot

    def read(self, slot):
        """Read ``slot`` into ``record`` and return its size; 0 if it is damaged, and then it is dropped."""
        if not self._load(slot):
            self.forget(slot)
            self.dropped += 1
            return 0
        return packet.HEADER_BYTES + (self.record[36] | self.record[37] << 8)

    def forget(self, slot):
        """Stop sending a record that the centre has acknowledged or refused."""
        if self.state[slot]:
            self.state[slot] = FREE
            self.waiting -= 1
            self._shorten()

    def find(self, boot_from, boot_at, sequence_from, sequence_at):
        """Return the slot of the waiting record with the boot and sequence (4 bytes each) at these offsets, or -1."""
        for i in range(self.span):
            slot = (self.oldest + i) % self.n
            if self.state[slot] and self._is(slot, boot_from, boot_at, sequence_from, sequence_at):
                return slot
        return -1

    def _is(self, slot, boot_from, boot_at, sequence_from, sequence_at):
        # Compare bytes: on a 32-bit board integers above 2**30 are allocated on the heap.
        at = slot * _KEY_BYTES
        for i in range(4):
            if self._keys[at + i] != boot_from[boot_at + i]:
                return False
            if self._keys[at + 4 + i] != sequence_from[sequence_at + i]:
                return False
        return True

    def first_key(self):
        """Return (boot, sequence) of the oldest waiting record, or None."""
        if not self.waiting:
            return None
        return struct.unpack_from("<II", self._keys, self.oldest * _KEY_BYTES)

    def _shorten(self):
        while self.span and not self.state[self.oldest]:
            self.oldest = (self.oldest + 1) % self.n
            self.span -= 1

    def close(self):
        self._file.close()


def _rename(aside, path):
    """Rename; FAT fails if the target exists, so delete it first (it is not a valid spool)."""
    try:
        os.remove(path)
    except OSError:
        pass
    os.rename(aside, path)
