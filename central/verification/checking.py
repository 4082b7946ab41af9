"""Check stored maps while the centre runs, in one process of the lowest priority, newest first.

The centre itself reads and writes the database. A low-priority process that held the database lock would block
everything else.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from central.config import ModelSection
from central.pipeline.child import live_with_parent
from central.storage.database import StoreError
from central.storage.journal import Journal, JournalEntry
from central.storage.map_store import DamagedMapError, Store, StoredMap
from central.verification.check_inputs import latents_of_map
from firmware_py.runtime.log import Log

LOOK_S = 0.25
# Pause after a dead process, a full disk or a fault, seconds.
AGAIN_S = 10.0
# Maximum delay of the centre's shutdown by a running check, seconds.
STOP_S = 0.2
NICENESS = 19


class CheckerLost(RuntimeError):
    """The process died or could not be started."""


@dataclass(frozen=True)
class CheckResult:
    """Result of a check: ``found`` for the provenance, or the reason it failed; ``of_model`` if it holds for the whole
    model.
    """

    seconds: float
    found: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    of_model: bool = False


class Checking:
    """Checking loop of one thread.

    ``models`` come from the configuration. ``counts`` holds the numbers of maps checked and failed. Each map is checked
    once; a check that was lost or could not be stored is repeated.
    """

    def __init__(self, data_dir: Path, models: Sequence[ModelSection], log: Log) -> None:
        self._data_dir = data_dir
        self._log = log
        self._process = _Process(data_dir, models)
        # Id ranges (after, through) of maps not looked at yet; the highest last.
        self._unseen: list[tuple[int, int]] = []
        self._last = 0
        self._without: set[bytes] = set()
        self._lost: int | None = None
        self.counts: Counter[str] = Counter()

    def adopt(self) -> None:
        """Note a new model; maps that arrive from now on are checked again even if an earlier check of the model
        failed.
        """
        self._without.clear()

    def run(self, stopping: threading.Event) -> None:
        """Check maps until ``stopping`` is set; a running check is then abandoned. No fault here stops the centre."""
        try:
            while not stopping.is_set():
                try:
                    with closing(Store(self._data_dir)) as store, closing(Journal(self._data_dir)) as journal:
                        while not stopping.is_set():
                            if not self._check_next(store, journal, stopping):
                                stopping.wait(LOOK_S)
                except StoreError as error:
                    self._log.write("check_commit_failed", reason=str(error))
                except Exception as error:
                    self._log.write("check_error", reason=repr(error))
                stopping.wait(AGAIN_S)
        finally:
            self._process.end()

    def _check_next(self, store: Store, journal: Journal, stopping: threading.Event) -> bool:
        """Check one map; return False if there was none."""
        id = self._next(store)
        if id is None:
            return False
        try:
            stored = store.by_id(id)
            answer = self._process.ask(stored, latents_of_map(stored, store, journal), stopping)
            if answer and answer.found:
                store.amend(stored, "consistency", answer.found)
        except DamagedMapError as error:
            self._fail(error, str(error))
            return True
        except StoreError:
            self._unseen.append((id - 1, id))
            raise
        except CheckerLost as error:
            self._log.write("check_lost", survey=stored.survey, event=stored.event, reason=str(error))
            if self._lost == id:
                self._fail(stored, "the process that checks died over it twice")
            else:
                self._lost = id
                self._unseen.append((id - 1, id))
            stopping.wait(AGAIN_S)
            return True
        if answer and answer.found:
            self.counts["checked"] += 1
            self._say("checked", stored, latents=answer.found["latents"], seconds=round(answer.seconds, 3))
        elif answer:
            self._fail(stored, answer.reason)
            if answer.of_model:
                self._without.add(stored.model_hash)
        return True

    def _fail(self, stored: StoredMap | DamagedMapError, reason: str) -> None:
        self.counts["failed"] += 1
        self._say("check_failed", stored, reason=reason)

    def _say(self, what: str, stored: StoredMap | DamagedMapError, **more: Any) -> None:
        place = {"survey": stored.survey, "event": stored.event, "revision": stored.revision}
        self._log.write(what, **place, **more)

    def _next(self, store: Store) -> int | None:
        """Return the newest map that still needs a check, or None."""
        last = store.last_id()
        if last > self._last:
            self._unseen.append((self._last, last))
            self._last = last
        while self._unseen:
            after, through = self._unseen[-1]
            id = store.newest_unchecked(after, through, without=tuple(self._without))
            if id is not None:
                self._unseen[-1] = (after, id - 1)
                return id
            self._unseen.pop()
        return None


class _Process:
    """Modelling process; started on demand, and again after it died."""

    def __init__(self, data_dir: Path, models: Sequence[ModelSection]) -> None:
        self._given = (data_dir, models)
        self._child: SpawnProcess | None = None
        self._connection: Connection | None = None

    def ask(
        self, stored: StoredMap, latents: dict[int, JournalEntry], stopping: threading.Event
    ) -> CheckResult | None:
        """Return the result for a map, or None if ``stopping`` came first.

        Raises:
            CheckerLost: The process died or could not be started.
        """
        try:
            # Send only when the process is ready. A large map would otherwise fill the pipe and block the shutdown.
            if self._connection is None and self._hear(self._start(), stopping) is None:
                return None
            assert self._connection
            self._connection.send((stored, latents))
            return self._hear(self._connection, stopping)
        except (EOFError, OSError) as error:
            reason = repr(error)
            if self._child and self._child.pid:
                self._child.join(STOP_S)
                reason = f"the process ended with {self._child.exitcode}"
            self.end()
            raise CheckerLost(reason) from None

    def _start(self) -> Connection:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        with theirs:
            self._child = context.Process(
                target=_check_maps, args=(theirs, *self._given), name="checking", daemon=True
            )
            self._child.start()
        return self._connection

    @staticmethod
    def _hear(connection: Connection, stopping: threading.Event) -> Any:
        while not stopping.is_set():
            if connection.poll(STOP_S):
                return connection.recv()
        return None

    def end(self) -> None:
        """Kill the process if it runs."""
        if self._child and self._child.pid:
            self._child.kill()
            self._child.join()
        if self._connection:
            self._connection.close()
        self._child = self._connection = None


def _check_maps(connection: Connection, data_dir: Path, models: Sequence[ModelSection]) -> None:
    """Run the process: report readiness, then answer map after map."""
    os.nice(NICENESS)
    live_with_parent()
    # Set the priority before the libraries are loaded; threads inherit it when they start.
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    from central.verification.check import Checker, UncheckableModel
    from central.verification.check_inputs import CheckInputError

    checker = Checker(data_dir, models)
    connection.send("ready")
    while True:
        stored, latents = connection.recv()
        began_s = time.monotonic()
        found, reason, of_model = {}, "", False
        try:
            found = checker.check(stored, latents).found
        except CheckInputError as error:
            reason, of_model = str(error), isinstance(error, UncheckableModel)
        except Exception as error:
            # The modelling libraries raise arbitrary errors.
            reason = repr(error)
        connection.send(CheckResult(time.monotonic() - began_s, found, reason, of_model))
