"""Notify systemd that a service of ``Type=notify`` is ready and alive.

The protocol is one datagram to the socket in $NOTIFY_SOCKET (sd_notify(3)). Without the variable, for example when a
person starts the device, nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Supervisor:
    """Notifier for systemd; a failed notification does not stop the device."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        # A name that begins with @ is in the abstract namespace, which the kernel writes with a zero byte.
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        interval_s = int(environment.get("WATCHDOG_USEC") or 0) / 1e6
        # Four notifications per watchdog interval.
        self._every_s = interval_s / 4 if interval_s else float("inf")
        self._due_s = float("-inf")
        self._ready = False

    def alive(self, now_s: float) -> None:
        """Notify systemd; call it in every loop pass with monotonic ``now_s``. The first call reports readiness."""
        if not self._address:
            return
        # A failed notification is repeated in the next pass.
        self._ready = self._ready or self._say("READY=1")
        if self._every_s < float("inf") and now_s >= self._due_s and self._say("WATCHDOG=1"):
            self._due_s = now_s + self._every_s

    def _say(self, message: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True
