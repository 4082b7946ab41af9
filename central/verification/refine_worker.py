"""Run the queued refinements, one after another on this machine or several at once on a Dask cluster.

The worker itself reads and writes the database, and does little else. Each job is computed in a process of its own, of
the lowest priority: such a process must not hold the database's lock, and running out of memory ends one job only.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from central.config import ModelSection
from central.errors import CentralError
from central.pipeline.child import live_with_parent
from central.recordings.given import read_given
from central.storage.database import StoreError, lock
from central.storage.map_store import NewMap
from central.verification.refine_inputs import (
    GATHER,
    Inputs,
    RefinementRequest,
    new_map,
    read_inputs,
    recording_sha256,
)
from central.verification.refine_jobs import (
    DONE,
    FAILED,
    FOLDER,
    LOCK_NAME,
    RUNNING,
    TOKEN,
    WAITING,
    Checkpoint,
    Job,
    JobQueue,
    holds_token,
    job_folder,
    new_token,
    read_checkpoint,
    remove_folder,
    write_checkpoint,
)
from firmware_py.inference.bundle import BundleError
from firmware_py.runtime.log import Log
from physics.cluster import on_cluster

LOOK_S = 1.0
NICENESS = 19
# A killed job loses up to this many iterations; a full-size one takes 0.5 s.
CHECKPOINT_ITERATIONS = 5


@dataclass(frozen=True)
class Task:
    """Job as it is given to another process: its inputs, and the ``token`` under which it may use ``folder``."""

    number: int
    folder: Path
    token: str
    inputs: Inputs


@dataclass(frozen=True)
class TaskResult:
    """Final state of a job, the reason if there is no map, and the map."""

    state: str
    reason: str = ""
    found: NewMap | None = None


class _TokenGone(Exception):
    """The job was cancelled, or another process has taken it up."""


def work(
    data_dir: Path,
    models: Sequence[ModelSection],
    log: Log,
    scheduler: str | None = None,
    drain: bool = False,
) -> None:
    """Run waiting jobs until the process is told to end; with ``drain`` until none waits.

    A job that is interrupted, by an error or by a signal that raises, waits again, and goes on from its checkpoint.

    Args:
        models: Those of the configuration.
        scheduler: Address of a Dask scheduler, tcp://HOST:PORT, whose workers see ``data_dir`` and the models under
            the same paths; by default jobs run here, one at a time.

    Raises:
        InUseError: Another worker is running.
        StoreError: The database cannot be read or written.
        ClusterError: The cluster cannot be reached or was lost.
    """
    claim = lock(data_dir, LOCK_NAME, "another `epic central refine --work`")
    with claim, closing(JobQueue(data_dir)) as queue:
        # Nothing runs yet, so a running job is one whose worker was killed.
        queue.put_back(interrupted=True)
        _remove_ended(data_dir, queue)
        worker = _Worker(data_dir, models, queue, log)
        log.write("refinement_worker_ready", scheduler=scheduler or "", waiting=len(queue.jobs(WAITING)))
        try:
            while True:
                if queue.jobs(WAITING):
                    worker.run(scheduler)
                elif drain:
                    break
                else:
                    time.sleep(LOOK_S)
        finally:
            for job in queue.jobs(RUNNING):
                # Processes of a cluster outlive this one.
                with suppress(OSError):
                    (job_folder(data_dir, job.number) / TOKEN).unlink()
            queue.put_back(interrupted=False)


def _remove_ended(data_dir: Path, queue: JobQueue) -> None:
    waiting = {str(job.number) for job in queue.jobs(WAITING)}
    if (data_dir / FOLDER).is_dir():
        for folder in (data_dir / FOLDER).iterdir():
            if folder.name not in waiting:
                shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """Gives jobs to processes and keeps their results."""

    def __init__(self, data_dir: Path, models: Sequence[ModelSection], queue: JobQueue, log: Log) -> None:
        self._data_dir = data_dir
        self._models = models
        self._queue = queue
        self._log = log

    def run(self, scheduler: str | None) -> None:
        """Run all waiting jobs."""
        results = on_cluster(scheduler, run_task, self._tasks()) if scheduler else _run_here(self._tasks())
        for task, result in results:
            self._finish(task, result)

    def _tasks(self) -> Iterator[Task]:
        """Yield waiting jobs as running ones. A job whose inputs cannot be read fails."""
        while job := self._queue.take():
            place = {"job": job.number, "survey": job.survey, "event": job.event}
            folder = job_folder(self._data_dir, job.number)
            try:
                inputs = read_inputs(self._data_dir, self._models, *self._given(job))
                token = new_token(folder)
            except (CentralError, BundleError) as error:
                self._queue.finish(job.number, FAILED, str(error))
                self._log.write("refinement_failed", **place, reason=str(error))
                continue
            current = self._queue.find(job.number)
            if current and current.state == RUNNING:
                self._log.write("refinement_started", **place)
                yield Task(job.number, folder, token, inputs)
            else:
                # Cancelled before there was a token to remove.
                remove_folder(self._data_dir, job.number)

    def _given(self, job: Job) -> tuple[RefinementRequest, np.ndarray | None]:
        """Return the request of a job, and the recording that was given for it."""
        gather = Path(job.gather) if job.gather else None
        request = RefinementRequest(job.event, job.survey, job.iterations, job.source, gather, job.prior)
        if job.source != GATHER:
            return request, None
        recorded = read_given(self._data_dir, job.survey, job.event)
        if recorded is None or recording_sha256(recorded) != job.gather_sha256:
            raise StoreError(
                f"event {job.event}: its recording was {'removed' if recorded is None else 'replaced'} since; "
                "queue it again, with --gather FILE"
            )
        return request, np.array(recorded)

    def _finish(self, task: Task, result: TaskResult | None) -> None:
        place = {"job": task.number, "event": task.inputs.request.event}
        if result is None:
            self._log.write("refinement_interrupted", **place)
            self._queue.put_back(interrupted=True, number=task.number)
            return
        if result.found:
            self._queue.store(task.number, result.found)
        else:
            self._queue.finish(task.number, result.state, result.reason)
        job = self._queue.find(task.number)
        assert job
        self._log.write(
            "refinement_ended", **place, state=job.state, revision=job.revision, reason=job.reason
        )
        remove_folder(self._data_dir, task.number)


def run_task(task: Task) -> TaskResult:
    """Compute a job from its checkpoint on; nothing is read from the database, and nothing written to it."""
    from central.verification.refine import compute

    inputs, sha256 = task.inputs, task.inputs.sha256()

    def on_iteration(done: int, misfit: float, velocity_mps: np.ndarray) -> None:
        if not holds_token(task.folder, task.token):
            raise _TokenGone
        if done % CHECKPOINT_ITERATIONS == 0:
            # On a full disk the job goes on, and can be resumed from the former checkpoint.
            with suppress(OSError):
                write_checkpoint(task.folder, task.token, Checkpoint(sha256, done, misfit, velocity_mps))

    before = read_checkpoint(task.folder)
    resume_from = None
    if (
        before
        and before.inputs_sha256 == sha256
        and before.velocity_mps.shape == inputs.start.velocity_mps.shape
    ):
        resume_from = (before.velocity_mps, before.done)
    try:
        refined = compute(inputs, on_iteration, resume_from)
    except _TokenGone:
        return TaskResult(
            FAILED,
            f"{task.folder / TOKEN}: gone; expected the centre's data_dir under the same path on each worker",
        )
    except Exception as error:
        # The modelling libraries raise arbitrary errors.
        return TaskResult(
            FAILED, str(error) if isinstance(error, CentralError | BundleError) else repr(error)
        )
    if not refined.gained:
        return TaskResult(DONE, "no step lowers the objective")
    if resume_from:
        refined = replace(refined, settings={**refined.settings, "resumed_at": resume_from[1]})
    return TaskResult(DONE, found=new_map(inputs, refined))


def _run_here(tasks: Iterator[Task]) -> Iterator[tuple[Task, TaskResult | None]]:
    """Run one task after another, each in a new process; yield None for one whose process died."""
    context = get_context("spawn")
    for task in tasks:
        ours, theirs = context.Pipe()
        child = context.Process(target=_compute, args=(theirs,), name="refinement", daemon=True)
        try:
            with theirs:
                child.start()
            ours.send(task)
            result = ours.recv()
        except (EOFError, OSError):
            result = None
        finally:
            if child.pid:
                child.kill()
                child.join()
            ours.close()
        yield task, result


def _compute(connection: Connection) -> None:
    """Run the process of one job."""
    os.nice(NICENESS)
    live_with_parent()
    # Received after the priority is set: the libraries that it loads start threads, which inherit it.
    connection.send(run_task(connection.recv()))
