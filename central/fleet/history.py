"""Keep the latency, losses and queue of every device over time, in ``history.sqlite`` beside the store.

It is a file of its own: telemetry need not survive a power cut, so it must not take the disk from the journal's
commits. It may be removed at any time. A silent device gets no samples, so its silence is a gap.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from central.fleet.device_views import DeviceView, read_devices
from central.storage.database import StoreError, connect, reported
from firmware_py.runtime.log import Log, now_us

FILE_NAME = "history.sqlite"
# Largest number of a survey or device, 16 bits in a record.
MAX_NUMBER = 0xFFFF
# Interval of samples, seconds.
EVERY_S = 10.0
# Records read per sample for the latency; bounds the work after a flood.
MAX_RECORDS = 20_000


@dataclass(frozen=True)
class Span:
    """A stretch of history of ``length_s``, one sample every ``step_s``."""

    step_s: int
    length_s: int


# About 1,400 samples a device, 60 kB.
SPANS = {"hour": Span(10, 3600), "days": Span(600, 2 * 86_400), "months": Span(10_800, 90 * 86_400)}

_CREATE = """
CREATE TABLE IF NOT EXISTS sample (
    step_s INTEGER NOT NULL,
    survey INTEGER NOT NULL,
    device INTEGER NOT NULL,
    at_s INTEGER NOT NULL,
    lag_ms INTEGER,
    lost INTEGER NOT NULL,
    queue INTEGER,
    PRIMARY KEY (step_s, survey, device, at_s)
) WITHOUT ROWID
"""
# The largest latency and queue of a step, and the last count of losses.
_ADD = """
INSERT INTO sample VALUES (?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET
    lag_ms = max(coalesce(lag_ms, excluded.lag_ms), coalesce(excluded.lag_ms, lag_ms)),
    lost = excluded.lost,
    queue = max(coalesce(queue, excluded.queue), coalesce(excluded.queue, queue))
"""
_WORST = """
SELECT survey, device, max(received_us - sample_time_us) FROM record
WHERE id > ? AND id <= ? AND sample_time_us > 0 GROUP BY survey, device
"""


@dataclass(frozen=True)
class Sample:
    """One step of a device's history.

    Attributes:
        at_s: Start of the step, seconds since 1970.
        lag_ms: Longest time from recording to the centre among the records that arrived; None if none did.
        lost: Records lost until then, from any cause.
        queue: Most records that waited on the device; None if it has not reported any number.
    """

    at_s: int
    lag_ms: int | None
    lost: int
    queue: int | None


def lost_records(view: DeviceView) -> int:
    """Return how many records never arrived, were dropped by the device, or were lost by the store."""
    return view.loss + (view.dropped or 0) + view.acknowledged_lost


class HistoryKeeper:
    """Sample every device each ``EVERY_S``; ``watch`` needs a thread."""

    def __init__(self, data_dir: Path, log: Log) -> None:
        """Begin after the last record of the store. Raises ``StoreError``."""
        self._data_dir = data_dir
        self._log = log
        with closing(connect(data_dir)) as store, reported("history: the store cannot be read"):
            self._through = _last_record(store)
        self._sampled_us = now_us()
        self._complaint = ""

    def watch(self, stopping: threading.Event) -> None:
        """Sample until ``stopping`` is set, and once more then; failures are logged and retried."""
        ended = False
        while not ended:
            ended = stopping.wait(EVERY_S)
            try:
                self.sample(now_us())
                self._complaint = ""
            except StoreError as error:
                if (complaint := str(error)) != self._complaint:
                    self._complaint = complaint
                    self._log.write("history_failed", reason=complaint)

    def sample(self, at_us: int) -> None:
        """Add a sample of each device that was seen since the last call.

        Raises:
            StoreError: The store cannot be read, or the history not written.
        """
        with closing(connect(self._data_dir)) as store, reported("history: the store cannot be read"):
            views = read_devices(store, at_us)
            last = _last_record(store)
            first = max(self._through, last - MAX_RECORDS)
            worst_us = {row[:2]: row[2] for row in store.execute(_WORST, (first, last))}
        seen = [view for view in views if view.last_seen_us > self._sampled_us]
        with closing(_open(self._data_dir)) as history, reported(f"{FILE_NAME}: cannot be written"):
            history.execute("BEGIN IMMEDIATE")
            for view in seen:
                lag_us = worst_us.get((view.survey, view.device))
                _add(history, view, at_us // 1_000_000, None if lag_us is None else lag_us // 1000)
            history.execute("COMMIT")
        self._through, self._sampled_us = last, at_us


def _last_record(store: sqlite3.Connection) -> int:
    return store.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()[0]


def _add(history: sqlite3.Connection, view: DeviceView, at_s: int, lag_ms: int | None) -> None:
    for span in SPANS.values():
        key = (span.step_s, view.survey, view.device)
        step = at_s - at_s % span.step_s
        history.execute(_ADD, (*key, step, lag_ms, lost_records(view), view.queue_depth))
        history.execute(
            "DELETE FROM sample WHERE step_s = ? AND survey = ? AND device = ? AND at_s < ?",
            (*key, step - span.length_s),
        )


def _open(data_dir: Path) -> sqlite3.Connection:
    path = data_dir / FILE_NAME
    try:
        database = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened ({error}); it may be removed") from None
    try:
        with reported(f"{path}: cannot be used; it may be removed"):
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(_CREATE)
    except StoreError:
        database.close()
        raise
    return database


def read_history(data_dir: Path, survey: int, device: int, span: Span) -> Sequence[Sample]:
    """Return a device's samples of ``span``, oldest first; none if no centre has kept any.

    Raises:
        StoreError: The file cannot be read.
    """
    if max(survey, device) > MAX_NUMBER or not (data_dir / FILE_NAME).exists():
        return []
    with closing(_open(data_dir)) as history, reported(f"{FILE_NAME}: cannot be read; it may be removed"):
        rows = history.execute(
            "SELECT at_s, lag_ms, lost, queue FROM sample WHERE step_s = ? AND survey = ? AND device = ? ORDER BY at_s",
            (span.step_s, survey, device),
        )
        return [Sample(*row) for row in rows]
