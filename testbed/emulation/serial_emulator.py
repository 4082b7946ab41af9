"""Emulate a serial line in user space: two pseudo-terminals with a baud rate and bit errors between them."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import threading
import time
import tty
from types import TracebackType

from testbed.emulation.shaping import Conditions, Shaper

READ_BYTES = 256
WAIT_S = 0.1


class EmulatedSerial:
    """Connect two processes through ``device_path`` and ``centre_path``: 8N1 at ``baud``, full duplex.

    The conditions ``up`` (from the device) and ``down`` may be changed at any time. Setting ``swallow`` on both unplugs
    the cable. Bytes for a port that is not open wait there, up to the system's buffer size.
    """

    def __init__(self, baud: int = 115_200, bit_error_rate: float = 0.0, seed: int = 0) -> None:
        self.up, self.down = (Conditions(baud / 10, bit_error_rate=bit_error_rate) for _ in range(2))
        rng = random.Random(seed)
        self._masters, self._slaves = zip(*(pty.openpty() for _ in range(2)), strict=True)
        for end in self._slaves:
            # Keep the port open here: reading from a port without any user is an error.
            tty.setraw(end)
        for end in self._masters:
            os.set_blocking(end, False)
        self.device_path, self.centre_path = (os.ttyname(end) for end in self._slaves)
        device, centre = self._masters
        self._shapers = {device: Shaper(self.up, rng), centre: Shaper(self.down, rng)}
        self._other = {device: centre, centre: device}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"line {self.device_path}", daemon=True)
        self._thread.start()

    def __enter__(self) -> EmulatedSerial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bit_errors(self) -> int:
        """Bit errors so far, both directions."""
        return sum(shaper.bit_errors for shaper in self._shapers.values())

    @property
    def swallowed_bytes(self) -> int:
        """Bytes lost while ``swallow`` was set, both directions."""
        return sum(shaper.swallowed_bytes for shaper in self._shapers.values())

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        for end in (*self._masters, *self._slaves):
            os.close(end)

    def _run(self) -> None:
        while not self._closing:
            now_s = time.monotonic()
            times = [now_s + WAIT_S]
            reading = []
            for end, shaper in self._shapers.items():
                ready_s, due_s = shaper.ready_s(now_s), shaper.due_s()
                if ready_s == now_s:
                    reading.append(end)
                times += [t for t in (ready_s if ready_s != now_s else None, due_s) if t is not None]
            readable, _, _ = select.select(reading, [], [], max(min(times) - now_s, 0.0))
            now_s = time.monotonic()
            for end in readable:
                self._shapers[end].push(os.read(end, READ_BYTES), now_s)
            for end, shaper in self._shapers.items():
                if arrived := shaper.pop(now_s):
                    # A full UART buffer drops incoming bytes.
                    with contextlib.suppress(BlockingIOError):
                        os.write(self._other[end], arrived)
