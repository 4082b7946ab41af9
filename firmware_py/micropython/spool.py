"""Store records until the centre has them: a ring of slots on any of ``store.py``'s media.

A slot is written before its record is sent and never after: an acknowledgement is kept in memory alone, for a bit of
flash is cleared once and set only with its whole block. In its stead each slot says how far back from it records
still waited when it was written. After a cut those are sent again under their keys, and the centre keeps each once.

    offset size field
    0      2    slots before this one back to the oldest record that waits
    2      4    records given up for want of room, ever
    6      ...  the record, as packet.py has it
    506    2    slots of the ring, 0 in those written before 2026-12
    508    4    CRC-32 of all before

The ring goes through the medium's blocks in turn, each erased when its first slot is due, so that all wear alike. A
slot that does not hold what was written is left out. Marks are slots that are never sent: each start writes one, with
its boot number and how many starts before it have failed, and so does a start that the centre has answered. A start
that ends with another error than the one before writes one with its text.
"""

import binascii
import struct

from firmware_py.micropython.errors import SetupError
from firmware_py.micropython.store import SLOT_BYTES
from firmware_py.protocol import packet

HEAD = "<HI"
HEAD_BYTES = 6
SIZE_AT = 506
CRC_AT = 508
MAX_RECORD_BYTES = SIZE_AT - HEAD_BYTES
# Constant CRC-32 of data followed by its own CRC-32; a small integer on every board.
_CRC_OF_WHOLE = 0x2144DF1C
_CRCS_OF_BLANK = (binascii.crc32(b"\xff" * SLOT_BYTES), binascii.crc32(bytes(SLOT_BYTES)))
# Offsets of boot and sequence in a record's header.
_KEY = 8
_KEY_BYTES = 8

FREE = 0
WAITING = 1
# Type of a mark, which no record on a link has. ``event`` says which of its boot's it is.
MARK = 0
STARTED = 1
ANSWERED = 2
FAILED = 3
MAX_ERROR_BYTES = 64
_INTACT, _BLANK, _DAMAGED = 0, 1, 2


class SpoolError(OSError):
    """The spool cannot be used."""


class OwnerError(SetupError):
    """The spool belongs to another device, or is no spool."""


class Spool:
    """Durable ring over ``store``, for the device and survey ``owner``.

    ``append`` and ``read`` use ``buffer`` for their slot. The ``span`` slots from ``oldest`` on may hold waiting
    records; ``state`` says which do. ``last_boot`` is the greatest that was noted, ``last_event`` that of the newest
    record, ``failed_starts`` those in a row before this one; 0 for none. ``last_error`` is that of the last start that
    ended with one, as long as the ring holds it.

    Raises:
        OwnerError: The store holds something else.
        SpoolError: The store cannot be used.
    """

    def __init__(self, store, owner):
        self._store = store
        self._owner = owner
        self.n = store.slots
        self.buffer = bytearray(SLOT_BYTES)
        # The record's part of the buffer.
        self.record = memoryview(self.buffer)[HEAD_BYTES:SIZE_AT]
        self._before_crc = memoryview(self.buffer)[:CRC_AT]
        self.state = bytearray(self.n)
        self._keys = bytearray(self.n * _KEY_BYTES)
        self.dropped = 0
        self.waiting = 0
        self.oldest = 0
        self.span = 0
        self.last_boot = 0
        self.last_event = 0
        self.failed_starts = 0
        self.last_error = ""
        # Slot of this start's last record.
        self._appended = -1
        try:
            self._recover()
        except OSError as error:
            raise SpoolError("%s: cannot be read (%r); replace the medium" % (store.place, error)) from None
        if store.note:
            print(store.note)

    def _recover(self):
        """Find the newest slot, and from it the records that may still wait, and the next slot to write."""
        newest = -1
        newest_key = (0, 0, 0)
        event_key = mark_key = error_key = newest_key
        depth = 0
        foreign = False
        for slot in range(self.n):
            found = self._load(slot)
            if found == _DAMAGED:
                # Until there is an intact slot, only the first block is written.
                first_write = slot < self._store.per_block and (
                    self._store.per_block > 1 or self.record[0:2] == packet.MAGIC
                )
                foreign = foreign or not first_write
            if found != _INTACT:
                continue
            _, _, kind, device, survey, boot, sequence, event = struct.unpack_from("<2sBBHHIII", self.record)
            self._check_owner((device, survey))
            self._note_key(slot)
            key = (boot, sequence, event if kind == MARK else 0)
            if kind == MARK:
                if key > mark_key:
                    mark_key = key
                    (self.failed_starts,) = struct.unpack_from("<H", self.record, packet.HEADER_BYTES)
                if event == FAILED and key > error_key:
                    error_key = key
                    self.last_error = self._error_text()
            else:
                self.state[slot] = WAITING
                if key > event_key:
                    event_key = key
                    self.last_event = event
            if key > newest_key:
                newest = slot
                newest_key = key
                self.last_boot = boot
                depth, self.dropped = struct.unpack_from(HEAD, self.buffer)
        self.last_boot = max(self.last_boot, self._store.last_boot)
        if newest < 0:
            if self._store.raw and foreign:
                raise OwnerError(
                    "%s: expected a spool or blank flash, found something else's data; if it may go: %s"
                    % (self._store.place, _WIPE)
                )
            return
        self.span = min(depth + 1, self.n)
        self.oldest = (newest - self.span + 1) % self.n
        for i in range(self.span, self.n):
            self.state[(self.oldest + i) % self.n] = FREE
        for state in self.state:
            self.waiting += state
        # A write that was cut leaves a slot that takes no other.
        slot = newest + 1
        while slot % self._store.per_block and self._load(slot) != _BLANK:
            self._skip()
            slot += 1
        self._shorten()

    def _check_owner(self, owner):
        if owner != self._owner:
            raise OwnerError(
                "%s: holds records of device %d, survey %d, this is device %d, survey %d; if they may go: %s"
                % ((self._store.place,) + owner + self._owner + (_WIPE,))
            )
        (slots,) = struct.unpack_from("<H", self.buffer, SIZE_AT)
        # A file of before 2026-12 has no count.
        if slots != self.n and (slots or self._store.raw):
            raise OwnerError(
                "%s: holds a spool of %d slots, device.json asks for %d; set it back, or if its records may go: %s"
                % (self._store.place, slots, self.n, _WIPE)
            )

    def _load(self, slot):
        """Read a slot into the buffer; return whether it is intact, blank or damaged."""
        if not self._store.read(slot, self.buffer):
            return _BLANK
        crc = binascii.crc32(self.buffer)
        if crc == _CRC_OF_WHOLE:
            return _INTACT
        return _BLANK if crc in _CRCS_OF_BLANK else _DAMAGED

    def _note_key(self, slot):
        at = slot * _KEY_BYTES
        for i in range(_KEY_BYTES):
            self._keys[at + i] = self.record[_KEY + i]

    def append(self, size):
        """Store the record of ``size`` bytes in ``record``; return its slot. It survives a power cut on return.

        A full ring drops its oldest records, as many as are erased together, and counts them.

        Raises:
            SpoolError: The medium cannot be written.
        """
        slot = self._write(size)
        self.state[slot] = WAITING
        self.waiting += 1
        self.span += 1
        self._appended = slot
        return slot

    def start(self, boot, failed_starts):
        """Note durably that the start of this boot number has begun, after so many that failed.

        Raises:
            SpoolError: The medium cannot be written.
        """
        self.last_boot = boot
        self._store.note_boot(boot)
        self._mark(STARTED, failed_starts)

    def answered(self):
        """Note durably that the centre has answered this start.

        Raises:
            SpoolError: The medium cannot be written.
        """
        self._mark(ANSWERED, 0)

    def failed(self, failed_starts, text):
        """Store the error with which this start ends, unless the last start ended with the same one."""
        text = "".join([letter if ord(letter) < 128 else "?" for letter in text[:MAX_ERROR_BYTES]])
        if text != self.last_error:
            self._mark(FAILED, failed_starts, text.encode())

    def _error_text(self):
        at = packet.HEADER_BYTES + 2
        size = self.record[packet.HEADER_BYTES - 2] | self.record[packet.HEADER_BYTES - 1] << 8
        return bytes(self.record[at : packet.HEADER_BYTES + size]).decode()

    def _mark(self, which, failed_starts, text=b""):
        sequence = 0
        if self._appended >= 0:
            _, sequence = struct.unpack_from("<II", self._keys, self._appended * _KEY_BYTES)
        device, survey = self._owner
        struct.pack_into(
            packet.HEADER,
            self.record,
            0,
            packet.MAGIC,
            packet.VERSION,
            MARK,
            device,
            survey,
            self.last_boot,
            sequence,
            which,
            0,
            packet.NO_MODEL,
            2 + len(text),
        )
        struct.pack_into("<H", self.record, packet.HEADER_BYTES, min(failed_starts, 65535))
        at = packet.HEADER_BYTES + 2
        self.record[at : at + len(text)] = text
        self._write(at + len(text))
        self._skip()

    def _write(self, size):
        """Write the record in ``record`` into the next slot that takes it; return the slot, not yet in the span."""
        for i in range(size, MAX_RECORD_BYTES):
            self.record[i] = 0
        struct.pack_into("<H", self.buffer, SIZE_AT, self.n)
        try:
            for _ in range(2 * self._store.per_block + 1):
                slot = self._next_slot()
                struct.pack_into(HEAD, self.buffer, 0, self.span, self.dropped)
                struct.pack_into("<I", self.buffer, CRC_AT, binascii.crc32(self._before_crc))
                if self._store.write(slot, self.buffer):
                    self._note_key(slot)
                    return slot
                # Worn or damaged.
                self._skip()
        except OSError as error:
            raise SpoolError(
                "%s: cannot be written (%r); replace the medium" % (self._store.place, error)
            ) from None
        raise SpoolError(
            "%s: no slot of two erase blocks holds what is written; the flash is worn, replace the board"
            % self._store.place
        )

    def _next_slot(self):
        """Return the slot after the newest, erasing its block if it begins one."""
        slot = (self.oldest + self.span) % self.n
        if slot % self._store.per_block == 0:
            while self.span > self.n - self._store.per_block:
                if self.state[self.oldest]:
                    self.state[self.oldest] = FREE
                    self.waiting -= 1
                    self.dropped += 1
                self.oldest = (self.oldest + 1) % self.n
                self.span -= 1
            self._shorten()
            self._store.erase(slot // self._store.per_block)
        return slot

    def _skip(self):
        """Take the next slot into the span, with nothing that waits."""
        self.state[(self.oldest + self.span) % self.n] = FREE
        self.span += 1
        self._shorten()

    def read(self, slot):
        """Read ``slot`` into ``record`` and return its size; 0 if it is damaged, and then it is dropped."""
        if self._load(slot) != _INTACT:
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
        self._store.close()


_WIPE = "mpremote exec 'from firmware_py.micropython.store import wipe; wipe()'"
