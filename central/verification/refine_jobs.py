"""Queue of refinements in the centre's database, and the checkpoints of those that run.

A job goes from ``waiting`` through ``running`` to ``done``, ``failed`` or ``cancelled``. Its map is stored and its
state set in one transaction. While it runs, ``data_dir/refinements/NUMBER/`` has its checkpoint and the token of the
process that runs it; a process whose token is gone stops.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import zipfile
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from central.storage.database import StoreError, connect, reported, transaction
from central.storage.map_store import NewMap, Store
from central.verification.refine_inputs import GATHER, Inputs, recording_sha256
from firmware_py.runtime.log import now_us
from physics.files.atomic import atomic_write

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
FOLDER = "refinements"
LOCK_NAME = "refinement.lock"
TOKEN, CHECKPOINT = "token", "checkpoint.npz"
# A job whose process dies this often fails, so that it does not hold up the others.
MAX_INTERRUPTIONS = 5
OVERTAKEN = "a map of later latents was stored meanwhile; queue the event again"

_COLUMNS = (
    "number, survey, event, source, gather, gather_sha256, iterations, prior, state, reason, revision, interruptions,"
    " queued_us, started_us, changed_us"
)


class JobError(StoreError):
    """There is no such job, or its state does not allow this."""


@dataclass(frozen=True)
class Job:
    """Refinement in the queue.

    Attributes:
        gather: File of the given recording, as the operator named it; the store has a copy.
        gather_sha256: Hash of that recording's samples.
        reason: Why it failed, or why it is done without a new map.
        revision: That of the stored map.
        interruptions: Times that its process died.
    """

    number: int
    survey: int
    event: int
    source: str
    gather: str
    gather_sha256: str
    iterations: int
    prior: str
    state: str
    reason: str
    revision: int | None
    interruptions: int
    queued_us: int
    started_us: int
    changed_us: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Checkpoint:
    """Latest map ``(nz, nx)`` m/s of a running job, from inputs of this hash."""

    inputs_sha256: str
    done: int
    misfit: float
    velocity_mps: np.ndarray


class JobQueue:
    """Queue access of one thread."""

    def __init__(self, data_dir: Path) -> None:
        """Raises ``StoreError``."""
        self._data_dir = data_dir
        self._database = connect(data_dir)

    def add(self, inputs: Inputs) -> int:
        """Add a job whose inputs have been found complete. Returns its number. Raises ``StoreError``."""
        request, now = inputs.request, now_us()
        given = inputs.recorded if request.source == GATHER else None
        row = (
            *(inputs.start.survey, inputs.start.event, request.source, str(request.gather or "")),
            "" if given is None else recording_sha256(given),
            *(request.iterations, request.prior, WAITING, "", None, 0, now, 0, now),
        )
        with transaction(self._database, "refinements: the job cannot be added"):
            number = self._database.execute(
                f"INSERT INTO refinement_job ({_COLUMNS}) VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row
            ).lastrowid
        assert number is not None
        return number

    def jobs(self, state: str | None = None) -> list[Job]:
        """Return the jobs, or those in one ``state``, in the order in which they were added. Raises ``StoreError``."""
        with reported("refinements: cannot be read"):
            rows = self._database.execute(
                f"SELECT {_COLUMNS} FROM refinement_job WHERE ?1 IS NULL OR state = ?1 ORDER BY number",
                (state,),
            ).fetchall()
        return [Job(*row) for row in rows]

    def find(self, number: int) -> Job | None:
        """Return one job, None if there is no such job. Raises ``StoreError``."""
        with reported("refinements: cannot be read"):
            row = self._database.execute(
                f"SELECT {_COLUMNS} FROM refinement_job WHERE number = ?", (number,)
            ).fetchone()
        return Job(*row) if row else None

    def take(self) -> Job | None:
        """Set the job that waits the longest to running and return it; None if none waits. Raises ``StoreError``."""
        with transaction(self._database, "refinements: no job can be taken"):
            row = self._database.execute(
                f"SELECT {_COLUMNS} FROM refinement_job WHERE state = ? ORDER BY number LIMIT 1", (WAITING,)
            ).fetchone()
            if row is None:
                return None
            job = replace(Job(*row), state=RUNNING, started_us=now_us())
            self._database.execute(
                "UPDATE refinement_job SET state = ?, started_us = ?2, changed_us = ?2 WHERE number = ?3",
                (job.state, job.started_us, job.number),
            )
        return job

    def put_back(self, interrupted: bool, number: int | None = None) -> None:
        """Let running jobs, or one of them, wait again; a job that was ``interrupted`` too often fails.

        Raises:
            StoreError: The write failed.
        """
        reason = f"its process died {MAX_INTERRUPTIONS} times; see the log, then queue it again"
        with transaction(self._database, "refinements: jobs cannot be put back"):
            self._database.execute(
                "UPDATE refinement_job SET state = iif(interruptions + ?1 < ?2, ?3, ?4),"
                " reason = iif(interruptions + ?1 < ?2, '', ?5), interruptions = interruptions + ?1, changed_us = ?6"
                " WHERE state = ?7 AND (?8 IS NULL OR number = ?8)",
                (int(interrupted), MAX_INTERRUPTIONS, WAITING, FAILED, reason, now_us(), RUNNING, number),
            )

    def finish(self, number: int, state: str, reason: str) -> None:
        """Set the state of a job that made no map, unless it was cancelled. Raises ``StoreError``."""
        with suppress(JobError), transaction(self._database, "refinements: a job cannot be finished"):
            _settle(self._database, number, state, reason, None)

    def store(self, number: int, entry: NewMap) -> None:
        """Store the map of a running job and set the job to done, in one transaction.

        Nothing is stored if the job was cancelled. The job fails if a map of later latents was stored meanwhile.

        Raises:
            StoreError: The write failed; the job still counts as running.
        """
        with closing(Store(self._data_dir)) as store, suppress(JobError):
            revision = store.put_unless_newer(
                entry, lambda database, revision: _settle(database, number, DONE, "", revision)
            )
            if revision is None:
                self.finish(number, FAILED, OVERTAKEN)

    def cancel(self, number: int) -> None:
        """Cancel a waiting or running job. No map of it is stored from now on; its process stops within an iteration.

        Raises:
            JobError: There is no such job, or it has ended.
        """
        with transaction(self._database, "refinements: the job cannot be cancelled"):
            changed = self._database.execute(
                "UPDATE refinement_job SET state = ?, changed_us = ? WHERE number = ? AND state IN (?, ?)",
                (CANCELLED, now_us(), number, WAITING, RUNNING),
            ).rowcount
        if not changed:
            job = self.find(number)
            found = f"it is {job.state}" if job else f"there are {len(self.jobs())} jobs"
            raise JobError(
                f"job {number}: expected one that waits or runs; {found}; see: epic central refine --status"
            )
        remove_folder(self._data_dir, number)

    def close(self) -> None:
        self._database.close()


def _settle(database: sqlite3.Connection, number: int, state: str, reason: str, revision: int | None) -> None:
    """Set the final state of a running job, within a transaction.

    Raises:
        JobError: It does not run any more.
    """
    changed = database.execute(
        "UPDATE refinement_job SET state = ?, reason = ?, revision = ?, changed_us = ? WHERE number = ? AND state = ?",
        (state, reason, revision, now_us(), number, RUNNING),
    ).rowcount
    if not changed:
        raise JobError(f"job {number}: does not run any more")


def job_folder(data_dir: Path, number: int) -> Path:
    """Return the folder of a job's checkpoint and token."""
    return data_dir / FOLDER / str(number)


def remove_folder(data_dir: Path, number: int) -> None:
    """Remove a job's checkpoint and token, the token first."""
    folder = job_folder(data_dir, number)
    with suppress(OSError):
        (folder / TOKEN).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def new_token(folder: Path) -> str:
    """Make a job's ``folder`` the property of a new process; a former one stops at its next iteration.

    Raises:
        StoreError: The folder cannot be written.
    """
    token = os.urandom(8).hex()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / TOKEN) as temporary:
            temporary.write_text(token)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); free space there") from None
    return token


def holds_token(folder: Path, token: str) -> bool:
    """Return True while the process with this token may go on."""
    try:
        return (folder / TOKEN).read_text() == token
    except OSError:
        return False


def write_checkpoint(folder: Path, token: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint; it is complete or the former one. Raises ``OSError``."""
    # The name of the temporary file is this process's own: a former one may still be writing.
    with atomic_write(folder / CHECKPOINT, f".{token}") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            inputs_sha256=np.array(checkpoint.inputs_sha256),
            done=np.array(checkpoint.done),
            misfit=np.array(checkpoint.misfit),
            velocity_mps=checkpoint.velocity_mps,
        )


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the latest checkpoint; None if there is none, or if it is damaged (.npz has a CRC-32 of each array)."""
    try:
        with np.load(folder / CHECKPOINT, allow_pickle=False) as found:
            return Checkpoint(
                str(found["inputs_sha256"]), int(found["done"]), float(found["misfit"]), found["velocity_mps"]
            )
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return None
