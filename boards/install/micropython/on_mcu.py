"""Installer functions for a microcontroller, run there by `mpremote exec`; nothing of them stays on the board.

The appended code calls one function and prints its answer as JSON on the last line. Paths are relative to the folder in
which the board starts: /flash, or /sdcard with a card.
"""

import binascii
import hashlib
import json
import os
import sys


def facts(paths, installed, spool):
    """Which board and firmware, whether it has ``ml`` and viper, what room, and the SHA-256 of each of ``paths``.

    The hash is None where there is no such file.
    """
    try:
        import ml  # noqa: F401

        runtime = True
    except ImportError:
        runtime = False
    try:
        exec("import micropython\n@micropython.viper\ndef f():\n    pass", {})
        viper = True
    except (SyntaxError, ImportError):
        viper = False
    try:
        room = os.statvfs(".")
        free_bytes = room[0] * room[3]
    except (AttributeError, OSError):
        free_bytes = None
    try:
        with open(installed) as file:
            record = json.load(file)
    except (OSError, ValueError):
        record = None
    return {
        "machine": getattr(sys.implementation, "_machine", ""),
        "version": ".".join([str(part) for part in sys.implementation.version[:3]]),
        "folder": os.getcwd(),
        "runtime": runtime,
        "viper": viper,
        "free_bytes": free_bytes,
        "files": {path: _sha256(path) for path in paths},
        "installed": record,
        "spool": _there(spool),
    }


def clock(fields):
    """Set the board's clock: year, month, day, weekday from 1, hour, minute, second, 0. False where there is none."""
    import machine

    try:
        machine.RTC().datetime(tuple(fields))
    except AttributeError:
        return False
    return True


def folders(paths):
    """Create folders, outer ones first."""
    for path in paths:
        if not _there(path):
            os.mkdir(path)


def remove(paths):
    """Remove files, and folders that are then empty; return those that existed."""
    removed = []
    for path in paths:
        try:
            os.remove(path)
        except OSError:
            try:
                os.rmdir(path)
            except OSError:
                continue
        removed.append(path)
    return removed


def rename(path, target):
    """Give a file another name, in the place of what has it; nothing where there is no such file."""
    if _there(path):
        if _there(target):
            os.remove(target)
        os.rename(path, target)


def _sha256(path):
    digest = hashlib.sha256()
    block = bytearray(1024)
    view = memoryview(block)
    try:
        with open(path, "rb") as file:
            while n := file.readinto(block):
                digest.update(view[:n])
    except OSError:
        return None
    return binascii.hexlify(digest.digest()).decode()


def _there(path):
    try:
        os.stat(path)
    except OSError:
        return False
    return True
