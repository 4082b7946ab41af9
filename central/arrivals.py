"""How far the journal has come, told by the thread that writes it to the one that reads it on."""

from __future__ import annotations

import threading


class Arrivals:
    """The newest record's id, and whether more will come. What waits is in the journal alone, so that a flood, or
    the backlog of a long outage, takes disk and not memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = 0
        self._read = 0
        self._ended = False

    def tell(self, newest: int) -> None:
        """The journal has records up to the id ``newest``."""
        with self._changed:
            self._newest = max(self._newest, newest)
            self._changed.notify()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def wait(self, read: int, timeout_s: float) -> bool:
        """Until there is more than what was ``read``, an id, or the end. Returns whether no more is to be read."""
        with self._changed:
            self._read = read
            self._changed.wait_for(lambda: self._newest > read or self._ended, timeout_s)
            return self._ended and self._newest <= read

    def waiting(self) -> int:
        """Records that are in the journal and not read yet."""
        with self._changed:
            return max(0, self._newest - self._read)
