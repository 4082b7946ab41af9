"""Interface of every link to the centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from firmware_py.errors import FirmwareError


class LinkError(FirmwareError, OSError):
    """A link cannot be set up as configured. (A link that is merely down is not an error: it retries.)"""


@dataclass
class LinkStatistics:
    """Counters of one link; bytes include the transport's overhead as far as known.

    ``connections`` counts how often the link was opened. ``fault`` says why the link is down; empty while it is up or
    its state is unknown. ``key_rejected`` says that the centre does not allow this link's key, or no longer.
    """

    records_sent: int = 0
    records_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    damaged: int = 0
    connections: int = 0
    fault: str = ""
    key_rejected: bool = False


class Link(Protocol):
    """Link to the centre. It delivers a whole record or none of it.

    A broken link recovers by itself within ``send`` and ``receive``, which never block longer than their timeout. After
    ``close`` both raise ``LinkError``.
    """

    @property
    def statistics(self) -> LinkStatistics: ...

    def send(self, record: bytes) -> bool:
        """Queue a record; return False if the link is down or its queue is full."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next record from the centre, or None on timeout."""
        ...

    def close(self) -> None:
        """Close the link; queued records may be lost (the spool has them)."""
        ...
