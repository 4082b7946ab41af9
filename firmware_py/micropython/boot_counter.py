"""The number of this start: up by one each time, whatever cut the last one short.

(device, boot, sequence) names a record for ever, so a boot must never come twice. The file is written aside,
flushed and renamed; FAT deletes the old one before it renames, so that after a cut there only the new one may
be there.
"""

import os

BOOT = "boot"


class BootError(OSError):
    """The number of this start cannot be kept."""


class NoClockError(BootError):
    """The number of this start cannot be told, until somebody sets the clock."""


def next_boot(path, spooled_boot, clock_s):
    """Count up and return the number of this start. Raises ``BootError``.

    ``spooled_boot`` is the greatest in the spool, 0 for none. Without a count, as after the flash was wiped, it
    goes on from ``clock_s``, seconds since 1970, which is past every boot counted up before; 0: not set.
    """
    aside = path + ".new"
    last = max(_read(path), _read(aside))
    if not last:
        if not clock_s:
            raise NoClockError(
                "%s: no count of starts, and the clock is not set; run: mpremote rtc --set" % path
            )
        last = clock_s
    boot = max(last, spooled_boot) + 1
    try:
        with open(aside, "w") as file:
            # Twice: a number that was cut off must not be taken for a smaller one.
            file.write("%d %d\n" % (boot, boot))
            file.flush()
        os.rename(aside, path)
    except OSError as error:
        raise BootError("%s: cannot be written (%r); make room on the flash" % (path, error)) from None
    return boot


def _read(path):
    """The count in a file; 0 when it is not there, or not whole."""
    try:
        with open(path) as file:
            first, second = file.read().split()
        return int(first) if first == second else 0
    except (OSError, ValueError):
        return 0
