"""What every link to the centre can do, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from firmware_py.errors import FirmwareError


class LinkError(FirmwareError, OSError):
    """A link cannot be set up as configured. (A link that is merely down is not an error: it retries.)"""


@dataclass
class LinkStatistics:
    """Counters of one link; bytes include what the transport adds, as far as it can be known.

    ``connections`` is how often the way was opened. ``fault`` says why the link is down, and is empty while it is
    not, or is not known to be.
    """

    records_sent: int = 0
    records_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    damaged: int = 0
    connections: int = 0
    fault: str = ""


class Link(Protocol):
    """A way to the centre. Records are whole: a link delivers all of one, or none of it.

    A link that is down comes back by itself, within ``send`` and ``receive``, which never wait longer than
    they were told to. After ``close`` both raise ``LinkError``.
    """

    @property
    def statistics(self) -> LinkStatistics: ...

    def send(self, record: bytes) -> bool:
        """Hand a record to the link; False when it cannot take one now (down, or its queue is full)."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """The next record from the centre, or None when none came in time."""
        ...

    def close(self) -> None:
        """Give up the link; records it still holds may be lost (the spool has them)."""
        ...
