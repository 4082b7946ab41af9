"""The centre's own checks of its maps by physics: the last drawn first, in one process at the lowest priority.

Nothing waits for them. What is checked, and how, is ``central.check``'s.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from central.child import live_with_parent
from central.config import ModelSection
from central.database import StoreError
from central.store import Store, Unchecked
from firmware_py.log import Log

if TYPE_CHECKING:
    from central.check import Checker

# After a full disk, or a process that died.
PAUSE_S = 10.0
LOOK_S = 0.5
STOP_S = 0.1


class Unlooked:
    """Which maps come next: of those that came since it was asked last the newest, then older ones.

    A map is given once, so that neither what cannot be checked nor what a revision replaced is met again.
    """

    def __init__(self) -> None:
        self._top = 0
        # (above, through): ids not looked at yet, the newest last.
        self._ranges: list[tuple[int, int]] = []

    def next(self, store: Store, without: set[bytes]) -> Unchecked | None:
        """The map to check next, of none of the models ``without``; None when there is none."""
        if (newest := store.last_id()) > self._top:
            self._ranges.append((self._top, newest))
            self._top = newest
        while self._ranges:
            above, through = self._ranges[-1]
            found = store.unchecked(above, through, frozenset(without))
            self._ranges.pop()
            if found:
                self._ranges.append((above, found.id - 1))
                return found
        return None

    def later(self, id: int) -> None:
        """Give it once more, when there is nothing else."""
        self._ranges.insert(0, (id - 1, id))


@dataclass(frozen=True)
class Answer:
    """What became of a check: checked, failed (``of_model``: so would all maps of this model), not_kept or lost."""

    kind: str
    said: dict[str, Any]
    of_model: bool = False


class Checking:
    """Work of one thread; ``counts`` tells checks by ``Answer.kind``."""

    def __init__(self, data_dir: Path, models: Sequence[ModelSection], log: Log) -> None:
        self._data_dir = data_dir
        self._models = list(models)
        self._log = log
        self._unlooked = Unlooked()
        self._without: set[bytes] = set()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self.counts: Counter[str] = Counter()

    def adopt(self, model_hash: bytes) -> None:
        """A model was added: what comes of it is checked, whatever was wrong before."""
        self._without.discard(model_hash)

    def run(self, stopping: threading.Event) -> None:
        """Check what is there and what comes, until ``stopping``; what goes wrong ends nothing else."""
        while not stopping.is_set():
            try:
                with contextlib.closing(Store(self._data_dir)) as store:
                    while not stopping.is_set():
                        self._step(store, stopping)
            except Exception as error:
                reason = str(error) if isinstance(error, StoreError) else repr(error)
                self._log.write("checks_paused", reason=reason)
                stopping.wait(PAUSE_S)
            finally:
                self._end()

    def _step(self, store: Store, stopping: threading.Event) -> None:
        found = self._unlooked.next(store, self._without)
        if not found:
            stopping.wait(LOOK_S)
            return
        try:
            answer = self._ask(found.id, stopping)
        except (EOFError, OSError) as error:
            self._end()
            # A service manager ends all of the centre's processes at once.
            lost = Answer("lost", {"reason": f"its process died: {error!r}"})
            answer = None if stopping.wait(STOP_S) else lost
        if not answer:
            return
        self.counts[answer.kind] += 1
        what = "checked" if answer.kind == "checked" else f"check_{answer.kind}"
        self._log.write(what, survey=found.survey, event=found.event, **answer.said)
        if answer.of_model:
            self._without.add(found.model_hash)
        if answer.kind in ("not_kept", "lost"):
            self._unlooked.later(found.id)
            stopping.wait(PAUSE_S)

    def _ask(self, id: int, stopping: threading.Event) -> Answer | None:
        """What became of the check of a map; None when the centre stops. Raises ``EOFError`` or ``OSError``."""
        if not self._connection:
            self._start()
        assert self._connection
        self._connection.send(id)
        while not self._connection.poll(STOP_S):
            if stopping.is_set():
                return None
        return self._connection.recv()

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Only with their end closed here is it told when the process dies.
        with theirs:
            self._process = context.Process(
                target=_work, args=(self._data_dir, self._models, theirs), name="checks", daemon=True
            )
            self._process.start()

    def _end(self) -> None:
        if self._process:
            # In the middle of a check as well: SQLite keeps all of what it was writing, or nothing.
            self._process.kill()
            self._process.join()
        if self._connection:
            self._connection.close()
        self._process = self._connection = None


def _work(data_dir: Path, models: Sequence[ModelSection], connection: Connection) -> None:
    """The process: an ``Answer`` for each id that comes."""
    os.nice(19)
    live_with_parent()
    from central.check import Checker

    checker: Checker | None = None
    while True:
        id = connection.recv()
        try:
            checker = checker or Checker(data_dir, models)
            answer = _checked(checker, id)
        except StoreError as error:
            answer = Answer("not_kept", {"reason": str(error)})
        connection.send(answer)


def _checked(checker: Checker, id: int) -> Answer:
    """Raises ``StoreError`` alone."""
    from central.evidence import EvidenceError
    from firmware_py.bundle import BundleError

    began_s = time.monotonic()
    loaded = False
    try:
        stored = checker.store.drawn(id)
        checker.model(stored)
        loaded = True
        checked = checker.check(stored)
    except StoreError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, EvidenceError | BundleError) else repr(error)
        return Answer("failed", {"reason": reason}, of_model=not loaded)
    said = {"revision": stored.revision, "latents": round(checked.latents, 4)}
    return Answer("checked", {**said, "seconds": round(time.monotonic() - began_s, 3)})
