"""Keep two bundle folders; an update is written to the unused one, and rolled back if it fails.

    bundle/         slot a, what the installation brought, and every second update
    bundle.b/       slot b
    slots           JSON: the slot in use, and what is known of both; decides

``slots`` is written twice, as "slots.0" and "slots.1" in turn, each with its CRC-32: whatever a power cut damages, the
other is whole. It is written at a switch and at its confirmation, and at each start of a trial only.

On FAT the installer preallocates all these files, with spare room. They are then overwritten in place by
whole sectors and never flushed or closed, which would rewrite the directory: a cut there costs the file system. Each
ends in 4 KiB of nothing, so that a torn erase block holds no part of another file.
"""

import binascii
import json
import os

from firmware_py.micropython.boot_counter import sync
from firmware_py.micropython.errors import SetupError
from firmware_py.micropython.padding import BLOCK_BYTES, END_BYTES, SECTOR_BYTES

# Starts of an update that the centre has not confirmed, before it is rolled back.
MAX_TRIAL_STARTS = 3
# File in a folder with the SHA-256 of the archive whose files are there, and how much of it is.
OFFER = "offer"
FILES = ("slots.0", "slots.1")
# Size of a preallocated note. Its text is in the middle block.
NOTE_BYTES = 3 * BLOCK_BYTES


class Slots:
    """State of the two bundle folders; the first is ``folder``.

    ``version`` is that of the bundle in use, 0 for the installed one; ``failure`` is [version, reason] that the centre
    has not heard, or None.
    """

    def __init__(self, folder):
        self._folders = (folder, folder + ".b")
        # Files that are overwritten in place; FAT rewrites the directory when one is closed.
        self._open = {}
        self._state = {
            "count": 0,
            "slot": 0,
            "version": 0,
            "former": None,
            "highest": 0,
            "trial": None,
            "failure": None,
        }
        for path in FILES:
            found = _read(path)
            if found and found["count"] > self._state["count"]:
                self._state = found

    @property
    def folder(self):
        """The bundle in use."""
        return self._folders[self._state["slot"]]

    @property
    def spare(self):
        """The folder that an update is written to."""
        return self._folders[1 - self._state["slot"]]

    @property
    def version(self):
        return self._state["version"]

    @property
    def on_trial(self):
        return self._state["trial"] is not None

    @property
    def has_former(self):
        """Return True if the spare folder holds the bundle that was in use before."""
        return self._state["former"] is not None

    @property
    def failure(self):
        return self._state["failure"]

    def begin(self):
        """Count a start; one too many of an update on trial goes back to the bundle before."""
        if self.on_trial:
            if self._state["trial"] >= MAX_TRIAL_STARTS:
                self.roll_back("it was started %d times without an answer of the centre" % MAX_TRIAL_STARTS)
            else:
                self._change(trial=self._state["trial"] + 1)

    def load(self, function, *arguments):
        """Return ``function``'s result; if it refuses the bundle in use, restart the board with the one before.

        So does an update that is refused on trial, and a bundle that was damaged since: the one before is its second
        copy. Without one, the error is raised.
        """
        try:
            return function(*arguments)
        except SetupError as error:
            if not self.has_former:
                raise
            print("update: version %d: %s" % (self.version, error))
            self.roll_back(str(error))
            import machine

            machine.reset()

    def refusal(self, version):
        """Why ``version`` is not taken; None if it is."""
        if version <= self._state["highest"]:
            return "version %d is not above %d, which was in use" % (version, self._state["highest"])
        return None

    def make_room(self):
        """Empty the spare folder for an update; there is then no bundle to go back to."""
        if self.has_former:
            self._change(former=None)
        if not self.in_place:
            empty(self.spare)

    def switch(self, version):
        """The spare folder is whole: use it from the next start on, on trial."""
        self._change(
            slot=1 - self._state["slot"],
            former=self._state["version"],
            version=version,
            highest=version,
            trial=0,
        )

    def confirm(self):
        """The centre has heard of the version in use."""
        self._change(trial=None)

    def roll_back(self, reason):
        """Use the bundle before again, and tell the centre why."""
        failed = self._state["version"]
        self._change(
            slot=1 - self._state["slot"],
            version=self._state["former"],
            former=None,
            trial=None,
            failure=[failed, reason[:200]],
        )

    def fail(self, version, reason):
        """An update that was not switched to."""
        self._change(highest=max(version, self._state["highest"]), failure=[version, reason[:200]])

    def told(self):
        """The centre has heard of the failure."""
        self._change(failure=None)

    def _change(self, **fields):
        self._state.update(fields)
        self._state["count"] += 1
        text = json.dumps(self._state)
        text = "%08x %s" % (binascii.crc32(text.encode()) & 0xFFFFFFFF, text)
        self._note(FILES[self._state["count"] % 2], text.encode())

    @property
    def in_place(self):
        """Return True if the spare folder's files are preallocated."""
        return size_of(self.spare + "/" + OFFER) >= NOTE_BYTES

    def offered(self):
        """Return the SHA-256 (hex) of the archive in the spare folder, or None, and the bytes noted as written."""
        try:
            sha256, written = read_note(self.spare + "/" + OFFER).split()
            return sha256.decode(), int(written)
        except (OSError, ValueError):
            return None, 0

    def note_offer(self, sha256, written):
        self._note(self.spare + "/" + OFFER, ("%s %d" % (sha256, written)).encode())

    def _note(self, path, data):
        if size_of(path) < NOTE_BYTES:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
            return
        self.overwrite(path, BLOCK_BYTES, data + b" " * (-len(data) % SECTOR_BYTES))
        # A sector that is larger leaves the file's buffer when another is read.
        file = self.file_in_place(path)
        file.seek(0)
        file.read(1)
        sync()

    def file_in_place(self, path):
        if path not in self._open:
            self._open[path] = open(path, "r+b", 0)
        return self._open[path]

    def overwrite(self, path, at, data):
        """Overwrite whole sectors of a preallocated file."""
        file = self.file_in_place(path)
        file.seek(at)
        file.write(data)


def read_note(path):
    with open(path, "rb") as file:
        if size_of(path) >= NOTE_BYTES:
            file.seek(BLOCK_BYTES)
        return file.read(BLOCK_BYTES).strip()


def room_of(path):
    """Return the largest content of a preallocated file, in bytes."""
    return size_of(path) - END_BYTES


def size_of(path):
    """Return the size of a file in bytes, 0 if it is missing."""
    try:
        return os.stat(path)[6]
    except OSError:
        return 0


def _read(path):
    """The state in a file; None if it is missing or damaged."""
    try:
        text = read_note(path).decode()
        if int(text[:8], 16) == binascii.crc32(text[9:].encode()) & 0xFFFFFFFF:
            return json.loads(text[9:])
    except (OSError, ValueError):
        pass
    return None


def empty(folder):
    """Make ``folder``, or remove the files in it."""
    try:
        os.mkdir(folder)
    except OSError:
        for entry in os.listdir(folder):
            os.remove(folder + "/" + entry)
