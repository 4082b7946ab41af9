"""Read a microcontroller's output on its prompt's port without interrupting it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import serial
from serial.tools import list_ports

from boards.install.linux.shell import InstallError
from boards.install.watched import Watched

# The device says so after each HELLO and HEALTH record (``firmware_py/micropython/device.py``).
SENT = ("epic: hello sent", "epic: health sent")
SAID = "epic: "
# Seconds before a missing port is opened again; USB comes back a second or two after a reset.
RETRY_S = 0.3
READ_S = 0.2


def usb_id(port: str) -> str:
    """Return vendor:product of the board behind ``port``, as in a profile; "" if the system does not know it."""
    for known in list_ports.comports():
        if known.device == port and known.vid is not None:
            return f"{known.vid:04x}:{known.pid:04x}"
    return ""


def lines(port: str, wait_s: float | None) -> Iterator[str]:
    """Yield the lines read from ``port``, for ``wait_s`` seconds or for ever.

    Raises:
        InstallError: The port cannot be opened in all that time.
    """
    until_s = time.monotonic() + (wait_s if wait_s is not None else float("inf"))
    reason = ""
    opened = False
    while time.monotonic() < until_s:
        try:
            with serial.serial_for_url(port, 115_200, timeout=READ_S) as line:
                opened = True
                yield from _read(line, until_s)
        except (serial.SerialException, OSError) as error:
            reason = str(error)
            if wait_s is None and not opened:
                break
        time.sleep(RETRY_S)
    if not opened:
        raise InstallError(
            f"{port}: cannot be opened; check the cable, and close what else uses it ({reason})"
        )


def watch(port: str, wait_s: float) -> Watched:
    """Watch a restarted board until its first HELLO or its error line.

    Raises:
        InstallError: The port cannot be opened.
    """
    last = ""
    for line in lines(port, wait_s):
        last = line or last
        if line.startswith(SENT):
            return Watched("hello", line)
        if line.startswith(SAID):
            return Watched("stopped", line)
    return Watched("silent", last)


def _read(line: serial.SerialBase, until_s: float) -> Iterator[str]:
    held = b""
    while time.monotonic() < until_s:
        held += line.read(line.in_waiting or 1)
        *whole, held = held.split(b"\n")
        for one in whole:
            yield one.decode(errors="replace").strip()
