"""How far the journal has come, told by the thread that writes it to the one that reads it on."""

from __future__ import annotations

import threading
import time

# How long what is complete may still be drawn after the end: a service manager kills after a minute what does not
# end, and nothing is lost, as the next start reads on.
DRAIN_S = 10.0


class JournalCursor:
    """The newest record's id, and whether more will come. What waits is in the journal alone, so that a flood, or
    the backlog of a long outage, takes disk and not memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = 0
        # Nothing is known of a backlog before the reader has found where it begins.
        self._read: int | None = None
        self._ended_s: float | None = None

    def tell(self, newest: int) -> None:
        """The journal has records up to the id ``newest``."""
        with self._changed:
            self._newest = max(self._newest, newest)
            self._changed.notify()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._ended_s = self._ended_s or time.monotonic()
            self._changed.notify()

    def wait(self, read: int, timeout_s: float, full: bool = False) -> bool:
        """Until there is more than what was ``read``, an id, or the end; ``full`` is who can take in no more now.

        Returns whether no more is to be read: all is, or the end is not to wait for it.
        """
        with self._changed:
            self._read = read
            self._changed.wait_for(
                lambda: (self._newest > read and not full) or self._ended_s is not None, timeout_s
            )
            return self._ended_s is not None and (full or self._newest <= read or self.over)

    @property
    def over(self) -> bool:
        """Whether what is left is to be left to the next start."""
        ended_s = self._ended_s
        return ended_s is not None and time.monotonic() - ended_s >= DRAIN_S

    def waiting(self) -> int:
        """Records that are in the journal and not read yet."""
        with self._changed:
            return 0 if self._read is None else max(0, self._newest - self._read)
