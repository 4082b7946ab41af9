"""Update the device over its link: messages of ``update_messages.py``, the archive of ``updates/archive.py``.

Of the archive only the files that this board runs are asked for, in chunks that fit the line's buffer, and written to
the unused slot as they come. The signature is verified before the first is asked for, each file's SHA-256 after its
last. Then the slot is switched, and the board restarts: the new bundle is on trial until the centre has heard of it.
A download that was cut off goes on once the same archive is offered again, whose SHA-256 lies beside the files.
"""

import binascii
import hashlib
import json
import os
import struct
import time

from firmware_py.micropython.ed25519 import verify
from firmware_py.micropython.health import head
from firmware_py.micropython.padding import BLOCK_BYTES, END_BYTES, SECTOR_BYTES, end_of
from firmware_py.micropython.slots import room_of, size_of
from firmware_py.protocol import packet

FORMAT = "epic-update/1"
# Bytes before the statement (magic and length) and after it (signature).
HEAD_BYTES, SIGNATURE_BYTES = 13, 64
CHUNK_BYTES = 512
# Bytes between two flushes, or on FAT between two notes of the progress. Each costs an erasure. After a power cut,
# the bytes since the last one are requested again.
FLUSH_BYTES = 16 << 10
# Maximum reason of a report; fits into the line's buffer of 500 bytes with the rest of the record.
MAX_REASON_BYTES = 200
RETRY_MIN_MS, RETRY_MAX_MS = 2000, 60_000
# Interval of reports of the version in use; the answer may bring an offer.
REPORT_MS = 300_000
SPARE_BYTES = 16 << 10


class UpdateError(ValueError):
    """An update that this device does not take."""


class Updater:
    """Updates of the bundle in ``slots``.

    Args:
        header: Record with this device's device, survey, boot and model hash.
        key: Public signing key, 32 bytes.
        names: Files of a bundle that this board runs.
        trial_s: Time in which the centre must hear of an update.
        restart: Called when the slot in use has changed.
    """

    # Large: one parameter for each part of a device that an update needs; an object that holds them takes heap.
    def __init__(self, slots, header, key, board, names, trial_s, feed, restart):
        self._slots = slots
        self._header = header
        self._key = key
        self._board = board
        self._names = names
        self._feed = feed
        self._restart = restart
        self._sequence = 0
        self._reported = False
        self._complaint = None
        # The archive's SHA-256, its version, and [name, place in the archive, bytes, SHA-256] of what is to come.
        self._sha256 = None
        self._version = 0
        self._files = []
        self._written = 0
        self._open = None
        # Bytes of the files that are complete.
        self._before = 0
        # Bytes on the flash according to the last note; None if the files are not preallocated.
        self._noted = None
        # The file under way was begun before a restart, which may have torn it.
        self._resumed = False
        now_ms = time.ticks_ms()
        self._due_ms = now_ms
        self._wait_ms = RETRY_MIN_MS
        self._trial_s = trial_s
        self._second_ms = now_ms

    def due(self, now_ms):
        """Return True if a message is due; roll back an update whose trial has ended without confirmation."""
        while time.ticks_diff(now_ms, self._second_ms) >= 1000:
            self._second_ms = time.ticks_add(self._second_ms, 1000)
            self._trial_s -= 1
        if self._slots.on_trial and self._trial_s <= 0:
            self._slots.roll_back("the centre did not hear of it in time")
            self._restart()
        return time.ticks_diff(now_ms, self._due_ms) >= 0

    def poll(self):
        """Return the record to send, as bytes."""
        self._due_ms = time.ticks_add(time.ticks_ms(), self._wait_ms)
        self._wait_ms = min(2 * self._wait_ms, RETRY_MAX_MS)
        self._sequence += 1
        header = self._header
        return packet.encode_record(
            packet.Record(
                packet.UPDATE,
                header.device,
                header.survey,
                header.boot,
                self._sequence,
                model_hash=header.model_hash,
                payload=encode(self._next()),
            )
        )

    def _next(self):
        if self._slots.failure:
            return _report("failed", *self._slots.failure)
        if self._complaint:
            return _report(*self._complaint)
        if self._reported and self._files:
            _, place, size, _ = self._files[0]
            length = min(CHUNK_BYTES, size - self._written)
            return {"want": {"sha256": self._sha256, "offset": place + self._written, "length": length}}
        return _report("running", self._slots.version, "")

    def handle(self, record):
        """Handle the centre's answer; one that is malformed is skipped."""
        try:
            ((kind, fields),) = decode(bytes(record.payload)).items()
            if kind == "heard":
                self._report_arrived(fields["version"])
            elif kind == "offer" and 0 < fields["version"] < 1 << 32:
                self._offered(fields)
            elif kind == "chunk" and fields["sha256"] == self._sha256:
                self._arrived(fields["offset"], fields["data"])
            elif kind == "gone" and fields["sha256"] == self._sha256:
                self._drop()
        except UpdateError as error:
            self._complain("failed", str(error))
        except OSError as error:
            self._complain("failed", "no room for the update (%r)" % error)
        # MicroPython raises RuntimeError for a message that is nested too deeply.
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            print("update: a message that is not whole (%r)" % error)

    def _report_arrived(self, version):
        said = self._next()
        if "report" not in said or said["report"]["version"] != version:
            return
        if self._slots.failure:
            self._slots.told()
        elif self._complaint:
            self._complaint = None
        else:
            self._reported = True
            if self._slots.on_trial:
                self._slots.confirm()
                print("update: version %d is confirmed" % version)
            self._wait_ms = REPORT_MS
            self._due_ms = time.ticks_add(time.ticks_ms(), REPORT_MS)
            return
        self._go_on()

    def _offered(self, offer):
        if self._slots.on_trial or self._sha256 == offer["sha256"] or offer["version"] == self._slots.version:
            return
        self._drop()
        self._version = offer["version"]
        statement = offer["statement"]
        if not verify(self._key, statement, offer["signature"], self._feed):
            raise UpdateError("the signature is not of the key that this device trusts")
        said = json.loads(statement)
        if said["format"] != FORMAT or said["version"] != offer["version"]:
            raise UpdateError("expected format %s and version %d" % (FORMAT, offer["version"]))
        if reason := self._slots.refusal(said["version"]):
            raise UpdateError(reason)
        if said["boards"] and self._board not in said["boards"]:
            self._complain("declined", "for %s, this is %s" % (said["boards"], self._board))
            return
        place = HEAD_BYTES + len(statement) + SIGNATURE_BYTES
        files = []
        for file in said["files"]:
            if file["name"] in self._names:
                files.append([file["name"], place, file["bytes"], file["sha256"]])
            place += file["bytes"]
        missing = [name for name in self._names if name not in [file[0] for file in files]]
        if missing:
            raise UpdateError("it has no %s, which this board runs; convert the model again" % missing[0])
        sha256 = binascii.hexlify(offer["sha256"]).decode()
        if self._slots.in_place:
            for name, _, size, _ in files:
                if size > room_of(self._path(name)):
                    raise UpdateError(
                        "%s has %d bytes, the installation left room for %d; install it over USB"
                        % (name, size, max(0, room_of(self._path(name))))
                    )
        offered, written = self._slots.offered()
        if self._slots.has_former or offered != sha256:
            self._slots.make_room()
            self._slots.note_offer(sha256, 0)
            written = 0
        self._noted = self._before = 0
        needed = 0
        if self._slots.in_place:
            # The erase block that was under way may be torn.
            self._noted = max(0, written - BLOCK_BYTES)
            needed = sum([file[2] for file in files]) - self._noted
        else:
            self._noted = None
            for file in files:
                needed += file[2] - min(file[2], size_of(self._path(file[0])))
            room = os.statvfs(self._slots.spare)
            if room[0] * room[3] < needed + SPARE_BYTES:
                raise UpdateError(
                    "it needs %d bytes of flash, %d are free" % (needed + SPARE_BYTES, room[0] * room[3])
                )
        self._files = files
        self._sha256 = offer["sha256"]
        self._reported = True
        print("update: version %d, %d bytes to come" % (self._version, needed))
        self._next_file()
        self._go_on()

    def _path(self, name):
        return self._slots.spare + "/" + name

    def _next_file(self):
        """Go on with the first file that is not whole; switch to the update if all are."""
        while self._files:
            name, _, size, sha256 = self._files[0]
            self._written = min(size, self._stored(name))
            self._resumed = self._written > 0
            if self._written < size:
                return
            if self._hash_of(self._path(name), size) != sha256:
                # Torn by the cut.
                self._written = 0
                return
            self._files.pop(0)
            self._before += size
        self._slots.switch(self._version)
        print("update: switched to version %d; the board restarts" % self._version)
        self._restart()

    def _stored(self, name):
        """Return the bytes of a file that an earlier start has written, in whole chunks."""
        if self._noted is None:
            return size_of(self._path(name))
        _, _, size, _ = self._files[0]
        stored = max(0, self._noted - self._before)
        return stored if stored >= size else stored - stored % CHUNK_BYTES

    def _write(self, path, data, size):
        """Write the next bytes of a file; make them durable every ``FLUSH_BYTES``."""
        before = self._written
        self._written += len(data)
        due = self._written // FLUSH_BYTES > before // FLUSH_BYTES
        if self._noted is None:
            if not self._open:
                self._open = open(path, "ab" if before else "wb")
            self._open.write(data)
            if due:
                self._open.flush()
            return
        self._slots.overwrite(path, before, data + bytes(-len(data) % SECTOR_BYTES))
        if self._written == size:
            self._slots.overwrite(path, size_of(path) - END_BYTES, end_of(size))
        elif due:
            self._slots.note_offer(binascii.hexlify(self._sha256).decode(), self._before + self._written)

    def _arrived(self, offset, data):
        name, place, size, sha256 = self._files[0]
        if offset != place + self._written or not data or len(data) > size - self._written:
            return
        path = self._path(name)
        self._write(path, data, size)
        if self._written == size:
            self._close()
            if self._hash_of(path, size) == sha256:
                self._files.pop(0)
                self._before += size
                self._next_file()
            elif self._resumed:
                self._written = 0
                self._resumed = False
            else:
                # Kept over a restart, so that this version is not downloaded again.
                self._drop()
                self._slots.fail(self._version, "the SHA-256 of %s is not what was signed" % name)
                print("update: version %d failed: %s" % (self._version, self._slots.failure[1]))
        self._go_on()

    def _hash_of(self, path, size):
        digest = hashlib.sha256()
        chunk = bytearray(CHUNK_BYTES)
        file = open(path, "rb") if self._noted is None else self._slots.file_in_place(path)
        file.seek(0)
        while n := min(size, file.readinto(chunk)):
            digest.update(memoryview(chunk)[:n])
            size -= n
            self._feed()
        if self._noted is None:
            file.close()
        return binascii.hexlify(digest.digest()).decode()

    def _complain(self, state, reason):
        """Report to the centre until it has answered.

        Nothing is written. An offer without a valid signature, or a full flash, must not use up a version.
        """
        self._drop()
        print("update: version %d %s: %s" % (self._version, state, reason))
        self._complaint = (state, self._version, reason)
        self._go_on()

    def _close(self):
        file, self._open = self._open, None
        if file:
            file.close()

    def _drop(self):
        try:
            self._close()
        except OSError:
            # The write has failed before, and is reported.
            pass
        self._sha256 = None
        self._files = []

    def _go_on(self):
        self._due_ms = time.ticks_ms()
        self._wait_ms = RETRY_MIN_MS


def _report(state, version, reason):
    reason = reason[:MAX_REASON_BYTES]
    while len(reason.encode()) > MAX_REASON_BYTES:
        reason = reason[:-1]
    return {"report": {"state": state, "version": version, "reason": reason}}


def encode(value):
    """CBOR (RFC 8949) of maps, texts, bytes and non-negative integers."""
    if isinstance(value, dict):
        return head(0xA0, len(value)) + b"".join([encode(k) + encode(v) for k, v in value.items()])
    if isinstance(value, str):
        text = value.encode()
        return head(0x60, len(text)) + text
    if isinstance(value, bytes):
        return head(0x40, len(value)) + value
    return head(0x00, value)


def decode(data):
    """The value that ``encode`` has encoded. Raises ``ValueError``, ``IndexError`` or ``TypeError``."""
    value, at = _decode(data, 0)
    if at != len(data):
        raise ValueError("bytes behind the value")
    return value


def _decode(data, at):
    major, n = data[at] & 0xE0, data[at] & 0x1F
    at += 1
    if n >= 24:
        size = 1 << n - 24
        if n > 27:
            raise ValueError("length")
        n = struct.unpack_from((">B", ">H", ">I", ">Q")[n - 24], data, at)[0]
        at += size
    if major == 0x00:
        return n, at
    if major in (0x40, 0x60):
        if at + n > len(data):
            raise ValueError("cut off")
        part = data[at : at + n]
        return part if major == 0x40 else part.decode(), at + n
    if major != 0xA0 or n > 16:
        raise ValueError("type")
    found = {}
    for _ in range(n):
        key, at = _decode(data, at)
        found[key], at = _decode(data, at)
    return found, at
