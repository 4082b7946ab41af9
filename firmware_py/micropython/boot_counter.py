"""Number the starts; the number grows at each, even after a power cut.

(device, boot, sequence) identifies a record for ever, so a boot number must never repeat. The spool notes it before
anything is sent. Where a power cut can take the newest slots of a spool, the number is kept beside it as well.
"""

import os
import sys

from firmware_py.micropython.errors import SetupError

# Distance of the copies in bytes; one erase block never holds both.
COPY_BYTES = 4096
# Files of the number before 2026-12; read, never written.
FORMER = ("boot", "boot.new")
_TEXT_BYTES = 512


class BootError(OSError):
    """The boot number cannot be stored."""


class NoClockError(SetupError):
    """The boot number is unknown until the clock is set."""


def next_boot(last_boot, clock_s):
    """Return the boot number of this start.

    Args:
        last_boot: Greatest number known, 0 for none.
        clock_s: Seconds since 1970, 0 if unset. Without a count, for example after the flash was wiped, the number
            continues from the clock, which exceeds every earlier boot.

    Raises:
        NoClockError: Neither is known.
        SetupError: The number does not fit into a record.
    """
    if not last_boot and not clock_s:
        raise NoClockError("no count of starts, and the clock is not set; run: mpremote rtc --set")
    boot = (last_boot or clock_s) + 1
    if boot >= 1 << 32:
        raise SetupError(
            "boot %d, expected less than 4294967296; uninstall with --purge, install again, and at the centre run: "
            "epic central devices forget" % boot
        )
    return boot


def former_boot():
    """The number in the files of before 2026-12, 0 without one."""
    return max([_read_number(path) for path in FORMER])


class BootCount:
    """Two copies of the number in one file, overwritten in place in turn, so that no cut damages both.

    The file stays open, since closing it would rewrite its directory entry.

    Raises:
        BootError: The number cannot be stored.
    """

    def __init__(self, path):
        self._path = path
        try:
            if not exists(path):
                with open(path, "wb") as file:
                    for _ in range(3 * COPY_BYTES // _TEXT_BYTES):
                        file.write(bytes(_TEXT_BYTES))
            self._file = open(path, "r+b", 0)
            self.last = max([self._read(copy) for copy in (0, 1)])
        except OSError as error:
            raise BootError("%s: cannot be read (%r); make room on the flash" % (path, error)) from None

    def write(self, boot):
        """Overwrite the older copy.

        Raises:
            BootError: The number cannot be stored.
        """
        # Written twice, so that a truncated number is not taken for a smaller one.
        text = b"%d %d\n" % (boot, boot)
        try:
            self._seek(boot % 2)
            self._file.write(text + bytes(_TEXT_BYTES - len(text)))
            # Where a sector is larger, it leaves the file's buffer now.
            self._seek(1 - boot % 2)
            self._file.read(1)
            if _read_number(self._path, self._at(boot % 2)) != boot:
                self._file.flush()
            sync()
        except OSError as error:
            raise BootError("%s: cannot be written (%r); replace the medium" % (self._path, error)) from None

    def close(self):
        self._file.close()

    def _at(self, copy):
        # The first 4096 bytes separate the copies from the data before the file.
        return (1 + copy) * COPY_BYTES

    def _seek(self, copy):
        self._file.seek(self._at(copy))

    def _read(self, copy):
        self._seek(copy)
        return _number(self._file.read(_TEXT_BYTES))


def _read_number(path, at=0):
    """The number at this offset of a file, 0 if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(at)
            return _number(file.read(_TEXT_BYTES))
    except OSError:
        return 0


def _number(copy):
    """Return the number in a copy, or 0 if it is incomplete."""
    try:
        first, second = copy.split(b"\n")[0].split()
        return int(first) if first == second else 0
    except ValueError:
        return 0


def sync():
    """Write what the port's driver of FAT holds back; on stm32 that is an erase block, for up to a second."""
    if _sync:
        _sync()


# Not a computer's, which would write all of its disks.
_sync = getattr(os, "sync", None) if sys.implementation.name == "micropython" else None


def exists(path):
    """Return True if there is a file or folder of this path."""
    try:
        os.stat(path)
    except OSError:
        return False
    return True
