"""Keep running totals over all events, updated as maps are decoded; each map counts once and no request waits."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from central.dashboard.archive import Archive

CHUNK = 500
# Seconds between counts of the flagged events; a check may flag an old map.
FLAGGED_EVERY_S = 5.0
# Time slice of counting, seconds; with a million maps a listener sees the totals grow.
SLICE_S = 0.2


class Totals:
    """Sums over the newest maps of all events; ``events`` by survey."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._through = 0
        self._counted = False
        self._events: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()
        self._flagged = 0
        self._flagged_at_s = 0.0

    def refresh(self, archive: Archive) -> None:
        """Add the maps decoded since the last call; return after about ``SLICE_S`` even if more remain."""
        with self._lock:
            until_s = time.monotonic() + SLICE_S
            through = self._through
            while time.monotonic() < until_s:
                accounts = archive.drawn_after(self._through, CHUNK)
                for account in accounts:
                    self._through = account.id
                    self._events[account.survey] += account.new
                    for name in ("partial", "received_bytes", "raw_bytes"):
                        self._sums[name] += getattr(account, name)
                self._counted = len(accounts) < CHUNK
                if self._counted:
                    break
            if self._through > through or time.monotonic() >= self._flagged_at_s:
                self._flagged = archive.count_flagged()
                self._flagged_at_s = time.monotonic() + FLAGGED_EVERY_S

    @property
    def counted(self) -> bool:
        """True if every stored map is included."""
        return self._counted

    def to_dict(self) -> dict[str, Any]:
        """Return the totals; ``counted`` is false while older maps are still being added."""
        with self._lock:
            return {
                "events": self._events.total(),
                "surveys": [{"survey": s, "events": n} for s, n in sorted(self._events.items())],
                "partial": self._sums["partial"],
                "flagged": self._flagged,
                "received_bytes": self._sums["received_bytes"],
                "raw_bytes": self._sums["raw_bytes"],
                "counted": self._counted,
            }
