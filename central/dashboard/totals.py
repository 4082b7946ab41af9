"""Keep running totals over all events, updated as maps are decoded; each map counts once and no request waits.

After maps were deleted everything is counted again; meanwhile the former totals are shown.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from central.dashboard.archive import Archive

CHUNK = 500
# Seconds between counts of the flagged events; a check may flag an old map.
FLAGGED_EVERY_S = 5.0
# Time slice of counting, seconds; with a million maps a listener sees the totals grow.
SLICE_S = 0.2
# Seconds between checks for deleted maps, for each stored map; a recount takes less than a tenth of that.
RECOUNT_S_PER_MAP = 2e-3


@dataclass
class _Count:
    """Sums over the first ``maps`` maps, up to the id ``through``; ``whole`` if these are all."""

    through: int = 0
    maps: int = 0
    whole: bool = False
    events: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)


class Totals:
    """Sums over the newest maps of all events; ``events`` by survey."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # During a recount these differ.
        self._shown = self._count = _Count()
        self._recount_at_s = 0.0
        self._flagged = 0
        self._flagged_at_s = 0.0

    def refresh(self, archive: Archive) -> None:
        """Add the maps decoded since the last call; return after about ``SLICE_S`` even if more remain."""
        with self._lock:
            until_s = time.monotonic() + SLICE_S
            through = self._count.through
            self._add(archive, until_s)
            if self._count.whole and time.monotonic() >= self._recount_at_s:
                self._recount_at_s = time.monotonic() + RECOUNT_S_PER_MAP * self._count.maps
                if archive.count_maps() < self._count.maps:
                    self._count = _Count()
                    self._add(archive, until_s)
            if self._count.whole:
                self._shown = self._count
            if self._count.through != through or time.monotonic() >= self._flagged_at_s:
                self._flagged = archive.count_flagged()
                self._flagged_at_s = time.monotonic() + FLAGGED_EVERY_S

    def _add(self, archive: Archive, until_s: float) -> None:
        count = self._count
        while time.monotonic() < until_s:
            accounts = archive.drawn_after(count.through, CHUNK)
            for account in accounts:
                count.through = account.id
                count.maps += 1
                count.events[account.survey] += account.new
                for name in ("partial", "received_bytes", "raw_bytes"):
                    count.sums[name] += getattr(account, name)
            count.whole = len(accounts) < CHUNK
            if count.whole:
                break

    @property
    def counted(self) -> bool:
        """True if every stored map is included."""
        return self._count.whole

    def to_dict(self) -> dict[str, Any]:
        """Return the totals; ``counted`` is false while older maps are still being added."""
        with self._lock:
            shown = self._shown
            return {
                "events": shown.events.total(),
                "surveys": [{"survey": s, "events": n} for s, n in sorted(shown.events.items())],
                "partial": shown.sums["partial"],
                "flagged": self._flagged,
                "received_bytes": shown.sums["received_bytes"],
                "raw_bytes": shown.sums["raw_bytes"],
                "counted": self._count.whole,
            }
