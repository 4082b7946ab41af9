"""Find record numbers that never arrived; log each gap once, and again when it is filled.

A gap counts once a later record is ``GAP_AFTER_S`` old, which excludes records that are merely out of order. A device
with a full spool or a refused record leaves a permanent gap. A device that sends fresh records before its backlog
leaves one until the backlog has arrived.
"""

from __future__ import annotations

import sqlite3

from central.storage.database import reported, transaction
from firmware_py.runtime.log import Log

GAP_AFTER_S = 10.0
LINES_A_MINUTE = 20
# Maximum gap rows per boot. Further gaps are added to the last row, so that no device can fill the table.
MAX_GAPS = 100

Boot = tuple[int, int, int]
# Log event and the numbers it names.
Told = tuple[str, int, int]

# First and last of the runs missing in the journal, after the scanned number (?4) and up to ?5.
_FIND = """
SELECT previous + 1, sequence - 1 FROM (
    SELECT sequence, lag(sequence, 1, ?4) OVER (ORDER BY sequence) AS previous FROM record
    WHERE survey = ?1 AND device = ?2 AND boot = ?3 AND sequence > ?4 AND sequence <= ?5
) WHERE sequence > previous + 1
"""


class GapWatch:
    """Keep the table ``gap`` up to date; look only at boots with new records since the last look."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._scanned: dict[Boot, int] = {}
        self._records: dict[Boot, int] = {}
        # Boots whose newest records were too recent at the last look.
        self._pending: set[Boot] = set()
        # ``changed`` of the last boot looked at; the first look covers all boots.
        self._seen = -1
        self._minute = 0
        self._lines = 0

    def look(self, database: sqlite3.Connection, at_us: int) -> None:
        """Update the gaps as of ``at_us``.

        Raises:
            StoreError: The database cannot be read or written.
        """
        for boot, records, highest, scanned in self._boots(database):
            told = self._scan(database, boot, self._scanned.get(boot, scanned), at_us)
            if self._records.get(boot) != records:
                told += _fill(database, boot)
                self._records[boot] = records
            if self._scanned[boot] < highest:
                self._pending.add(boot)
            else:
                self._pending.discard(boot)
            for what, first, last in told:
                self._tell(what, boot, first, last, at_us)

    def _boots(self, database: sqlite3.Connection) -> list[tuple[Boot, int, int, int]]:
        """Return (boot, records, highest, scanned) of the boots to look at.

        A boot with all its numbers is skipped, unless it had a gap that is now filled.
        """
        columns = "SELECT survey, device, boot, records, highest, scanned FROM device_boot WHERE"
        incomplete = (
            "(records < highest OR EXISTS (SELECT 1 FROM gap WHERE gap.survey = device_boot.survey"
            " AND gap.device = device_boot.device AND gap.boot = device_boot.boot))"
        )
        with reported("devices: cannot be read"):
            # Read this first, so that concurrent commits are covered by the next look.
            (last,) = database.execute("SELECT coalesce(max(changed), -1) FROM device_boot").fetchone()
            rows = database.execute(f"{columns} changed > ? AND {incomplete}", (self._seen,)).fetchall()
            fresh = {row[:3] for row in rows}
            for boot in self._pending - fresh:
                rows += database.execute(f"{columns} survey = ? AND device = ? AND boot = ?", boot)
        self._seen = last
        return [((survey, device, boot), *rest) for survey, device, boot, *rest in rows]

    def _tell(self, what: str, boot: Boot, first: int, last: int, at_us: int) -> None:
        """Log one line, at most ``LINES_A_MINUTE``: a device in a restart loop leaves a gap each time."""
        if self._minute != at_us // 60_000_000:
            if self._lines > LINES_A_MINUTE:
                self._log.write("gaps_unlisted", lines=self._lines - LINES_A_MINUTE)
            self._minute, self._lines = at_us // 60_000_000, 0
        self._lines += 1
        if self._lines <= LINES_A_MINUTE:
            survey, device, number = boot
            self._log.write(what, survey=survey, device=device, boot=number, first=first, last=last)

    def _scan(self, database: sqlite3.Connection, boot: Boot, scanned: int, at_us: int) -> list[Told]:
        with reported("devices: cannot be read"):
            (bound,) = database.execute(
                "SELECT max(sequence) FROM record WHERE survey = ? AND device = ? AND boot = ? AND sequence > ?"
                " AND received_us <= ?",
                (*boot, scanned, at_us - int(GAP_AFTER_S * 1e6)),
            ).fetchone()
            found = database.execute(_FIND, (*boot, scanned, bound)).fetchall() if bound else []
        if found:
            _keep(database, boot, found, bound)
        self._scanned[boot] = bound or scanned
        return [("gap", first, last) for first, last in found]


def _keep(database: sqlite3.Connection, boot: Boot, found: list[tuple[int, int]], bound: int) -> None:
    with transaction(database, "devices: a gap cannot be kept"):
        (known,) = database.execute(
            "SELECT count(*) FROM gap WHERE survey = ? AND device = ? AND boot = ?", boot
        ).fetchone()
        room = max(MAX_GAPS - known, 0)
        database.executemany(
            "INSERT INTO gap VALUES (?,?,?,?,?,?)",
            [(*boot, first, last, last - first + 1) for first, last in found[:room]],
        )
        if rest := found[room:]:
            database.execute(
                "UPDATE gap SET last = ?4, missing = missing + ?5 WHERE survey = ?1 AND device = ?2 AND boot = ?3"
                " AND first = (SELECT max(first) FROM gap WHERE survey = ?1 AND device = ?2 AND boot = ?3)",
                (*boot, rest[-1][1], sum(last - first + 1 for first, last in rest)),
            )
        database.execute(
            "UPDATE device_boot SET scanned = ? WHERE survey = ? AND device = ? AND boot = ?", (bound, *boot)
        )


def _fill(database: sqlite3.Connection, boot: Boot) -> list[Told]:
    """Remove arrived records from the gaps of ``boot``."""
    with reported("devices: cannot be read"):
        gaps = database.execute(
            "SELECT first, last, missing, (SELECT last - first + 1 - count(*) FROM record"
            " WHERE survey = ?1 AND device = ?2 AND boot = ?3 AND sequence BETWEEN first AND last)"
            " FROM gap WHERE survey = ?1 AND device = ?2 AND boot = ?3",
            boot,
        ).fetchall()
    changed = [(left, *boot, first) for first, _, missing, left in gaps if left != missing]
    if changed:
        with transaction(database, "devices: a gap cannot be kept"):
            database.executemany(
                "UPDATE gap SET missing = ? WHERE survey = ? AND device = ? AND boot = ? AND first = ?",
                changed,
            )
            database.execute("DELETE FROM gap WHERE missing = 0")
    return [("gap_filled", first, last) for first, last, _, left in gaps if not left]
