"""A TCP connection to the centre's gateway, over Wi-Fi where a network is named; connected again whenever it is lost.

Nothing here waits but for the resolver: give the gateway's address as a number where that matters.
"""

import random
import select
import socket
import time

from firmware_py.micropython.config import ConfigError

RETRY_MIN_MS = 1000
RETRY_MAX_MS = 30_000
# An access point or a gateway that has not answered for so long is asked again.
CONNECT_MS = 15_000
GIVE_UP_MS = 1000


class Wifi:
    """The board's station interface, kept on one network. Raises ``ConfigError`` for a board without."""

    def __init__(self, ssid, password):
        try:
            import network
        except ImportError:
            raise ConfigError("link: ssid: this board has no Wi-Fi; leave it out") from None
        self._credentials = (ssid, password)
        self._station = network.WLAN(network.STA_IF)
        self._station.active(True)
        self._asked_ms = None

    def connected(self):
        """Return True if the network is up; request it again after a long outage."""
        if self._station.isconnected():
            self._asked_ms = None
            return True
        now_ms = time.ticks_ms()
        if self._asked_ms is None or time.ticks_diff(now_ms, self._asked_ms) > CONNECT_MS:
            again = self._asked_ms is not None
            self._asked_ms = now_ms
            try:
                if again:
                    self._station.disconnect()
                self._station.connect(*self._credentials)
            except OSError:
                # The driver is still at the last attempt.
                pass
        return False


class Tcp:
    """TCP counterpart of ``Uart``: ``send`` and ``readinto`` connect when an attempt is due.

    ``endpoint`` is the gateway's (host, port); ``wifi`` is a ``Wifi`` or None. ``feed`` is called while a write waits.
    """

    def __init__(self, endpoint, wifi, feed):
        self._host, self._port = endpoint
        self._wifi = wifi
        self._feed = feed
        self._socket = None
        self._poll = None
        self._open = False
        self._began_ms = 0
        self._lost_ms = time.ticks_ms()
        self._wait_ms = 0
        self._retry_ms = RETRY_MIN_MS

    def readinto(self, buffer):
        """Bytes that have come; None for none."""
        if not self._connected():
            return None
        try:
            n = self._socket.readinto(buffer)
        except OSError:
            n = 0
        if n == 0:
            self._lose()
            return None
        if n:
            self._retry_ms = RETRY_MIN_MS
        return n

    def send(self, buffer, n):
        """Write ``n`` bytes; return False without a connection, or if it accepts none for ``GIVE_UP_MS`` and is
        closed.
        """
        if not self._connected():
            return False
        taken_ms = time.ticks_ms()
        at = 0
        while at < n:
            try:
                written = self._socket.write(buffer, at, n - at) or 0
            except OSError:
                self._lose()
                return False
            at += written
            self._feed()
            if written:
                taken_ms = time.ticks_ms()
            elif time.ticks_diff(time.ticks_ms(), taken_ms) > GIVE_UP_MS:
                # Half a frame is on its way; the next connection begins with a whole one.
                self._lose()
                return False
            else:
                time.sleep_ms(1)
        return True

    def _connected(self):
        if self._wifi and not self._wifi.connected():
            if self._socket:
                self._lose()
            return False
        now_ms = time.ticks_ms()
        if not self._socket:
            if time.ticks_diff(now_ms, self._lost_ms) < self._wait_ms:
                return False
            self._connect(now_ms)
        if self._socket and not self._open:
            self._finish(now_ms)
        return self._open

    def _connect(self, now_ms):
        self._feed()
        self._began_ms = now_ms
        try:
            address = socket.getaddrinfo(self._host, self._port, 0, socket.SOCK_STREAM)[0][-1]
            self._socket = socket.socket()
            self._socket.setblocking(False)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN | select.POLLOUT)
        except OSError:
            self._lose()
            return
        try:
            self._socket.connect(address)
        except OSError:
            # In progress, or failed, which the poll tells.
            pass
        self._feed()

    def _finish(self, now_ms):
        """Look whether the connection stands by now."""
        for _, events in self._poll.poll(0):
            if events & (select.POLLHUP | select.POLLERR):
                self._lose()
                return
            if events & select.POLLOUT:
                self._open = True
                return
        if time.ticks_diff(now_ms, self._began_ms) > CONNECT_MS:
            self._lose()

    def _lose(self):
        """Close, and wait: 1 s, 2 s and so on to 30 s, each less a random part, so that devices do not march."""
        if self._socket:
            self._socket.close()
        self._socket = self._poll = None
        self._open = False
        self._lost_ms = time.ticks_ms()
        self._wait_ms = self._retry_ms - ((self._retry_ms * random.getrandbits(8)) >> 10)
        self._retry_ms = min(2 * self._retry_ms, RETRY_MAX_MS)
