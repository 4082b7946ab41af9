"""Count boots; the number grows at each start, even after a power cut.

(device, boot, sequence) identifies a record for ever, so a boot number must never repeat. The file is written under a
temporary name, flushed and renamed. FAT deletes the old file before it renames, so after a power cut only the new one
may exist.
"""

import os

BOOT = "boot"


class BootError(OSError):
    """The boot number cannot be stored."""


class NoClockError(BootError):
    """The boot number is unknown until the clock is set."""


def next_boot(path, spooled_boot, clock_s):
    """Increment and return the boot number.

    Args:
        spooled_boot: Greatest boot in the spool, 0 for none.
        clock_s: Seconds since 1970, 0 if unset. Without a count, for example after the flash was wiped, the number
            continues
            from the clock, which exceeds every earlier boot.

    Raises:
        BootError: The number cannot be stored.
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
            # Written twice, so that a truncated number is not taken for a smaller one.
            file.write("%d %d\n" % (boot, boot))
            file.flush()
        os.rename(aside, path)
    except OSError as error:
        raise BootError("%s: cannot be written (%r); make room on the flash" % (path, error)) from None
    return boot


def _read(path):
    """Return the count in a file, or 0 if it is missing or incomplete."""
    try:
        with open(path) as file:
            first, second = file.read().split()
        return int(first) if first == second else 0
    except (OSError, ValueError):
        return 0
