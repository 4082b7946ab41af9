"""Tell the decoding thread how far the receiving thread has written the journal."""

from __future__ import annotations

import threading
import time

# Time to decode complete events at shutdown, seconds. A service manager kills a process after a minute. Nothing is
# lost, since the next start resumes.
DRAIN_S = 10.0


class JournalCursor:
    """Id of the newest record, and whether more will come.

    Waiting records stay in the journal. A flood or the backlog of a long outage therefore takes disk space, not memory.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest = 0
        # None until the reader has found the start of its backlog.
        self._read: int | None = None
        self._ended_s: float | None = None

    def tell(self, newest: int) -> None:
        """Announce that the journal holds records up to the id ``newest``."""
        with self._changed:
            self._newest = max(self._newest, newest)
            self._changed.notify()

    def end(self) -> None:
        """Announce that no more records will come."""
        with self._changed:
            self._ended_s = self._ended_s or time.monotonic()
            self._changed.notify()

    def wait(self, read: int, timeout_s: float, full: bool = False) -> bool:
        """Wait for records after the id ``read``, or for the end; a ``full`` reader waits only for the end.

        Returns:
            True if the reader should stop: all is read, or the remaining work is deferred.
        """
        with self._changed:
            self._read = read
            self._changed.wait_for(
                lambda: (self._newest > read and not full) or self._ended_s is not None, timeout_s
            )
            return self._ended_s is not None and (full or self._newest <= read or self.over)

    @property
    def over(self) -> bool:
        """True if the remaining work is deferred to the next start."""
        ended_s = self._ended_s
        return ended_s is not None and time.monotonic() - ended_s >= DRAIN_S

    def waiting(self) -> int:
        """Number of journal records that are not read yet."""
        with self._changed:
            return 0 if self._read is None else max(0, self._newest - self._read)
