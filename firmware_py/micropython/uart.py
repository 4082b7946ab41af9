"""Open the link to the centre: a UART or a second USB serial port, with writes that time out."""

import time

from firmware_py.micropython.config import ConfigError

GIVE_UP_MS = 1000
# Receive buffer; holds acknowledgements (50 bytes) that arrive while a latent is encoded.
RECEIVED_BYTES = 1024


def open_line(link):
    """Open the port of section ``link``.

    The first USB port is the prompt (REPL). It is not used, so that typed text is never taken for a message of the
    centre.

    Raises:
        ConfigError: The board has no such port.
    """
    try:
        if link["kind"] == "usb":
            if link["port"] == 0:
                raise ConfigError("link: usb port 0 is the prompt's; take port 1, or a uart")
            from pyb import USB_VCP

            return USB_VCP(link["port"])
        from machine import UART

        pins = {name: _pin(link[name]) for name in ("tx", "rx") if link[name]}
        return UART(link["port"], baudrate=link["baud"], timeout=0, rxbuf=RECEIVED_BYTES, **pins)
    except (ImportError, TypeError, ValueError, OSError) as error:
        raise ConfigError(
            "link: no %s port %s on this board (%r)" % (link["kind"], link["port"], error)
        ) from None


def _pin(name):
    """The board's ``Pin`` of a number or a name."""
    from machine import Pin

    return Pin(int(name) if name.isdigit() else name)


class Uart:
    """``port`` with complete writes; ``readinto`` never blocks, and returns None or 0 without data."""

    def __init__(self, port, feed):
        self._port = port
        self._feed = feed
        self._cut = False
        self._zero = b"\0"

    def readinto(self, buffer):
        try:
            return self._port.readinto(buffer)
        except OSError:
            # No data, or no peer: a device cannot tell and need not.
            return None

    def send(self, buffer, n):
        """Write ``n`` bytes; return False if the line accepts none for ``GIVE_UP_MS``."""
        # Separate this frame from an earlier one that was cut short.
        if self._cut and not self._write(self._zero, 1):
            return False
        self._cut = not self._write(buffer, n)
        return not self._cut

    def _write(self, buffer, n):
        taken_ms = time.ticks_ms()
        at = 0
        while at < n:
            try:
                written = self._port.write(buffer, at, n - at) or 0
            except OSError:
                written = 0
            at += written
            self._feed()
            if written:
                taken_ms = time.ticks_ms()
            else:
                if time.ticks_diff(time.ticks_ms(), taken_ms) > GIVE_UP_MS:
                    return False
                time.sleep_ms(1)
        return True
