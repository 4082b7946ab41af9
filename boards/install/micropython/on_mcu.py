"""Installer functions for a microcontroller, run there by `mpremote exec`; nothing of them stays on the board.

The appended code calls one function and prints its answer as JSON on the last line. Paths are relative to the folder in
which the board starts: /flash, or /sdcard with a card.
"""

import binascii
import gc
import hashlib
import json
import os
import sys


def facts(paths, installed, spools, spool_file, label):
    """Return facts about board, firmware, storage and heap, and the SHA-256 of each of ``paths``.

    ``files`` maps each path to its hash, None if the file is missing. ``spool`` lists the existing ones of ``spools``,
    ``spool_bytes`` is the size of ``spool_file``, None without one.
    ``partition`` is True if the flash of an ESP32 has a data partition ``label``.
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
        import omv

        openmv = omv.version_string()
    except (ImportError, AttributeError):
        openmv = ""
    try:
        from esp32 import Partition

        partition = bool(Partition.find(Partition.TYPE_DATA, label=label))
    except ImportError:
        partition = False
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
        "mpy": getattr(sys.implementation, "_mpy", 0),
        "folder": os.getcwd(),
        "runtime": runtime,
        "viper": viper,
        "openmv": openmv,
        "heap_bytes": _heap_bytes(),
        "largest_bytes": _largest_bytes(),
        "free_bytes": free_bytes,
        "boot": _says_something("boot.py"),
        "files": hashes(paths),
        "installed": record,
        "spool": [path for path in spools if _there(path)],
        "spool_bytes": os.stat(spool_file)[6] if _there(spool_file) else None,
        "partition": partition,
    }


def hashes(paths):
    """Return the SHA-256 of each file by its path; None for a missing file."""
    return {path: _sha256(path) for path in paths}


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
    """Rename a file and replace ``target``; do nothing if the file does not exist."""
    if _there(path):
        if _there(target):
            os.remove(target)
        os.rename(path, target)


def trial():
    """Load configuration, bundle and model as the device does at its start, and run the model once.

    Returns ``runtime``, ``inference_ms`` and ``heap_bytes``; or ``error``, or ``no_link`` if the board lacks its port.
    """
    try:
        import time

        from firmware_py.micropython.config import load_config

        config = load_config("device.json")
        try:
            _look_for(config["link"])
        except Exception as error:
            return {"no_link": f"{type(error).__name__}: {error}"}
        gc.collect()
        from firmware_py.micropython.bundle import load_bundle
        from firmware_py.micropython.runtime import open_model, reserve

        bundle = load_bundle(config["bundle"])
        model = open_model(bundle, reserve(bundle), _nothing)
        latent = bytearray(model.latent)
        started_ms = time.ticks_ms()
        model.encode(latent)
        inference_ms = time.ticks_diff(time.ticks_ms(), started_ms)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    gc.collect()
    return {"runtime": type(model).__name__, "inference_ms": inference_ms, "heap_bytes": _heap_bytes()}


def _look_for(link):
    """Open the UART or USB port of a section ``link``, or import what TCP needs; raises what is raised."""
    if link["kind"] == "tcp":
        import socket  # noqa: F401

        if link["ssid"]:
            import network  # noqa: F401
        return
    from firmware_py.micropython.uart import open_line

    line = open_line(link)
    if hasattr(line, "deinit"):
        line.deinit()


def state():
    """Return the state of the device that the prompt has just interrupted, without a reset in between.

    ``stopped`` is the error line with which it stopped; None if it was running or never started.
    """
    module = sys.modules.get("firmware_py.micropython.start")
    device = getattr(module, "running", None)
    stopped = getattr(module, "stopped", None)
    found = {
        "running": device is not None and not stopped,
        "stopped": stopped,
        "heap_bytes": _heap_bytes(),
        "version": ".".join([str(part) for part in sys.implementation.version[:3]]),
        "machine": getattr(sys.implementation, "_machine", ""),
    }
    if device is not None:
        waiting, dropped, refused, _, acknowledged, _, encode_us, latent_bytes = device.status()
        found["waiting"] = waiting
        found["dropped"] = dropped
        found["refused"] = refused
        found["acknowledged"] = acknowledged
        found["encode_ms"] = encode_us // 1000 if encode_us else None
        found["latent_bytes"] = latent_bytes
        found["last_error"] = device.last_error
    return found


def _says_something(path):
    """Return True if the module exists and holds more than comments."""
    try:
        with open(path) as file:
            return any(line.strip() and not line.startswith("#") for line in file)
    except OSError:
        return False


def _nothing():
    pass


def _heap_bytes():
    """Free bytes of MicroPython's heap; None elsewhere."""
    try:
        gc.collect()
        return gc.mem_free()
    except AttributeError:
        return None


def _largest_bytes():
    """Return the largest free block of the heap, to 1 KiB, at most 512 KiB; None if the heap has no fixed size."""
    low, high = 0, _heap_bytes()
    if high is None:
        return None
    high = min(high, 512 << 10)
    while high - low > 1024:
        middle = (low + high) // 2
        try:
            bytearray(middle)
            low = middle
        except MemoryError:
            high = middle
        gc.collect()
    return low


def wipe():
    """Erase the device's spool, wherever it is."""
    try:
        from firmware_py.micropython.store import wipe

        wipe()
    except Exception as error:
        print("spool: not erased:", error)


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
