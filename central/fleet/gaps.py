"""Find record numbers that never arrived; log each gap once, and again when it is filled.

A gap counts once a later record is ``GAP_AFTER_S`` old, which excludes records that are merely out of order. A device
with a full spool or a refused record leaves a permanent gap. A device that sends fresh records before its backlog
leaves one until the backlog has arrived.

``device_boot.scanned`` and the table ``gap`` are the memory of numbers, and outlive the records: a number up to
``scanned`` that is in no gap has arrived. Retention deletes only such records (``central.storage.retention``), and the
journal does not store them again.
"""

from __future__ import annotations

import sqlite3

from central.storage.database import reported, transaction
from central.storage.journal import gap_of
from firmware_py.runtime.log import Log

GAP_AFTER_S = 10.0
LINES_A_MINUTE = 20
# Most gap rows of a boot, so that no device can fill the table. If there are more, the oldest gaps become one row:
# devices no longer resend records of that age.
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
        boots, last_change = self._boots(database)
        complete: list[tuple[int, Boot, int]] = []
        for boot, records, highest, scanned in boots:
            # The first scan of a boot with all its numbers. A store of an earlier EPIC may have deleted some of them.
            has_all = scanned == 0 and records == highest
            bound, found = _scan(database, boot, scanned, highest, at_us, has_all)
            told = [("gap", first, last) for first, last in found]
            if found:
                _keep(database, boot, found, bound)
            elif bound > scanned:
                complete.append((bound, boot, scanned))
            if self._records.get(boot) != records:
                told += _fill(database, boot)
                self._records[boot] = records
            if bound < highest:
                self._pending.add(boot)
            else:
                self._pending.discard(boot)
            for what, first, last in told:
                self._tell(what, boot, first, last, at_us)
        _advance(database, complete)
        self._seen = last_change

    def _boots(self, database: sqlite3.Connection) -> tuple[list[tuple[Boot, int, int, int]], int]:
        """Return (boot, records, highest, scanned) of the boots to look at, and the newest ``changed``."""
        columns = "SELECT survey, device, boot, records, highest, scanned FROM device_boot WHERE"
        unfinished = (
            "(scanned < highest OR EXISTS (SELECT 1 FROM gap WHERE gap.survey = device_boot.survey"
            " AND gap.device = device_boot.device AND gap.boot = device_boot.boot))"
        )
        with reported("devices: cannot be read"):
            # Read this first, so that concurrent commits are covered by the next look.
            (last,) = database.execute("SELECT coalesce(max(changed), -1) FROM device_boot").fetchone()
            rows = database.execute(f"{columns} changed > ? AND {unfinished}", (self._seen,)).fetchall()
            fresh = {row[:3] for row in rows}
            for boot in self._pending - fresh:
                rows += database.execute(f"{columns} survey = ? AND device = ? AND boot = ?", boot)
        return [((survey, device, boot), *rest) for survey, device, boot, *rest in rows], last

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


def _scan(
    database: sqlite3.Connection, boot: Boot, scanned: int, highest: int, at_us: int, has_all: bool
) -> tuple[int, list[tuple[int, int]]]:
    """Look for missing numbers of ``boot`` after ``scanned``.

    Args:
        has_all: All numbers up to ``highest`` have arrived.

    Returns:
        The last number that was looked at, and the missing ranges (first, last) before it. Records that are newer than
        ``GAP_AFTER_S`` at ``at_us`` end the look.
    """
    if has_all:
        return highest, []
    of_boot = "FROM record WHERE survey = ? AND device = ? AND boot = ? AND sequence > ? AND sequence <= ?"
    with reported("devices: cannot be read"):
        (arrived,) = database.execute(f"SELECT count(*) {of_boot}", (*boot, scanned, highest)).fetchone()
        if arrived == highest - scanned:
            return highest, []
        (bound,) = database.execute(
            f"SELECT max(sequence) {of_boot} AND received_us <= ?",
            (*boot, scanned, highest, at_us - int(GAP_AFTER_S * 1e6)),
        ).fetchone()
        if bound is None:
            return scanned, []
        return bound, database.execute(_FIND, (*boot, scanned, bound)).fetchall()


def _advance(database: sqlite3.Connection, complete: list[tuple[int, Boot, int]]) -> None:
    """Write ``scanned`` of boots without a new gap: (new number, boot, previous number)."""
    if not complete:
        return
    # No sync: after a power cut these numbers are scanned again. Retention syncs before anything relies on them.
    database.execute("PRAGMA synchronous = NORMAL")
    try:
        with transaction(database, "devices: the scanned numbers cannot be kept"):
            database.executemany(
                "UPDATE device_boot SET scanned = ? WHERE survey = ? AND device = ? AND boot = ? AND scanned = ?",
                [(bound, *boot, scanned) for bound, boot, scanned in complete],
            )
    finally:
        database.execute("PRAGMA synchronous = FULL")


def _keep(database: sqlite3.Connection, boot: Boot, found: list[tuple[int, int]], bound: int) -> None:
    of_boot = "FROM gap WHERE survey = ? AND device = ? AND boot = ?"
    with transaction(database, "devices: a gap cannot be kept"):
        gaps = database.execute(f"SELECT first, last, missing {of_boot} ORDER BY first", boot).fetchall()
        gaps += [(first, last, last - first + 1) for first, last in found]
        if (surplus := len(gaps) - MAX_GAPS) > 0:
            oldest = gaps[: surplus + 1]
            merged = (oldest[0][0], oldest[-1][1], sum(missing for _, _, missing in oldest))
            gaps = [merged, *gaps[surplus + 1 :]]
        database.execute(f"DELETE {of_boot}", boot)
        database.executemany("INSERT INTO gap VALUES (?,?,?,?,?,?)", [(*boot, *gap) for gap in gaps])
        database.execute(
            "UPDATE device_boot SET scanned = ? WHERE survey = ? AND device = ? AND boot = ?", (bound, *boot)
        )


def _fill(database: sqlite3.Connection, boot: Boot) -> list[Told]:
    """Remove arrived records from the gaps of ``boot``.

    The number of missing records never rises: retention may have deleted records within a merged gap.
    """
    with reported("devices: cannot be read"):
        gaps = database.execute(
            "SELECT first, last, missing, (SELECT last - first + 1 - count(*) FROM record"
            " WHERE survey = ?1 AND device = ?2 AND boot = ?3 AND sequence BETWEEN first AND last)"
            " FROM gap WHERE survey = ?1 AND device = ?2 AND boot = ?3",
            boot,
        ).fetchall()
    changed = [(left, *boot, first) for first, _, missing, left in gaps if left < missing]
    if changed:
        with transaction(database, "devices: a gap cannot be kept"):
            database.executemany(
                "UPDATE gap SET missing = ? WHERE survey = ? AND device = ? AND boot = ? AND first = ?",
                changed,
            )
            database.execute("DELETE FROM gap WHERE missing = 0")
    return [("gap_filled", first, last) for first, last, _, left in gaps if not left]


def cut_from_gap(database: sqlite3.Connection, boot: Boot, sequence: int) -> None:
    """Split the gap around an arrived number whose record will be deleted, so that the number stays known.

    Call it within the transaction that deletes the record, before the deletion. The gap stays whole if the boot has
    ``MAX_GAPS`` gaps, or if records within it were deleted before; the record is then stored once more if the device
    resends it. SQLite errors propagate.
    """
    gap = gap_of(database, boot, sequence)
    if gap is None:
        return
    first, last, missing = gap
    of_boot = "survey = ? AND device = ? AND boot = ?"
    (gaps,) = database.execute(f"SELECT count(*) FROM gap WHERE {of_boot}", boot).fetchone()
    (arrived,) = database.execute(
        f"SELECT count(*) FROM record WHERE {of_boot} AND sequence BETWEEN ? AND ?",
        (*boot, first, sequence - 1),
    ).fetchone()
    missing_before = sequence - first - arrived
    missing_after = missing - missing_before
    if gaps < MAX_GAPS and 0 <= missing_after <= last - sequence:
        database.execute(f"DELETE FROM gap WHERE {of_boot} AND first = ?", (*boot, first))
        pieces = ((first, sequence - 1, missing_before), (sequence + 1, last, missing_after))
        database.executemany(
            "INSERT INTO gap VALUES (?,?,?,?,?,?)", [(*boot, *piece) for piece in pieces if piece[-1]]
        )
