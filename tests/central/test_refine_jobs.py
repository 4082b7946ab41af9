"""The queue of refinements: nothing is lost or stored twice, whatever is killed or cancelled when."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dask_cluster import two_processes
from kill_images import check_kills
from small_waves import WAVES, earth, uncertainty
from tiny import bundle_centre, waves_bundle
from waiting import wait_until

import epic
from central.recordings.given import keep_given
from central.storage.database import FILE_NAME, InUseError, StoreError, lock
from central.storage.map_store import NewMap, Store
from central.verification import refine as refine_module
from central.verification import refine_worker
from central.verification.refine_inputs import GATHER, RefinementRequest, read_inputs
from central.verification.refine_jobs import (
    CANCELLED,
    DONE,
    FAILED,
    LOCK_NAME,
    MAX_INTERRUPTIONS,
    RUNNING,
    WAITING,
    Checkpoint,
    JobError,
    JobQueue,
    job_folder,
    new_token,
    read_checkpoint,
    write_checkpoint,
)
from central.verification.refine_worker import Task, run_task, work
from firmware_py.runtime.log import Log
from models.inversion.waveform import invert
from physics.modelling import model_gathers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TRUTH = earth(300.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return waves_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gather():
    return model_gathers(TRUTH[None, None], WAVES)[0]


@pytest.fixture
def config(tmp_path, bundle):
    """A centre whose events 7 and 8 have a map without the body that the recording has."""
    provenance = {"devices": [0, 1], "sample_time_us": 1, "received_bytes": 9, "acquisition": WAVES.to_dict()}
    maps = (earth(0.0), uncertainty(), provenance)
    with closing(Store(tmp_path / "data", create=True)) as store:
        store.put([NewMap((1, event, bundle.model_hash), event, False, *maps) for event in (7, 8)])
    return bundle_centre(tmp_path, bundle)


@pytest.fixture
def data_dir(config, tmp_path):
    return tmp_path / "data"


@pytest.fixture
def models(config):
    from central.config import load_config

    return load_config(config).model


@pytest.fixture
def queue(data_dir):
    with closing(JobQueue(data_dir)) as queue:
        yield queue


@pytest.fixture
def add(queue, data_dir, models, gather, tmp_path):
    """Adds an inversion of the event's recording, ``add(event, iterations)``, and returns its number."""
    np.save(tmp_path / "gather.npy", gather)

    def add(event=7, iterations=12):
        request = RefinementRequest(event, None, iterations, GATHER, tmp_path / "gather.npy")
        return queue.add(read_inputs(data_dir, models, request))

    return add


@pytest.fixture
def run(data_dir, models, monkeypatch):
    """Runs all jobs in this process."""

    def run():
        monkeypatch.setattr(
            refine_worker, "_run_here", lambda tasks: ((task, run_task(task)) for task in tasks)
        )
        work(data_dir, models, Log(data_dir / "log.jsonl"), drain=True)

    return run


def revisions(data_dir, event=7):
    with closing(Store(data_dir)) as store:
        return store.revisions(event)


def states(queue):
    return [job.state for job in queue.jobs()]


def refine(*arguments) -> int:
    return epic.main(["central", "refine", *map(str, arguments)])


def test_jobs_are_added_run_in_order_and_listed_by_the_command(
    config, data_dir, gather, tmp_path, run, capsys
):
    np.save(tmp_path / "gather.npy", gather)
    given = ("--config", config, "--gather", tmp_path / "gather.npy", "--iterations", 12)
    assert refine(7, "--queue", *given) == 0
    said = capsys.readouterr().out
    assert said.startswith("job 1: event 7, 12 iterations, by the given recording; no worker runs, start one")
    assert refine(8, "--queue", "--json", *given) == 0
    assert json.loads(capsys.readouterr().out) == {"job": 2}
    # The operator's file may go; the store has a copy.
    (tmp_path / "gather.npy").unlink()
    run()
    assert refine("--status", "--config", config, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["job"], row["event"], row["state"], row["revision"]) for row in rows] == [
        (1, 7, "done", 2),
        (2, 8, "done", 2),
    ]
    assert rows[0]["started_us"] <= rows[0]["changed_us"] <= rows[1]["started_us"]
    newest, start = revisions(data_dir)
    account = newest.provenance["refinement"]
    assert account["gather"] == str(tmp_path / "gather.npy") and account["of_revision"] == start.revision
    assert account["misfit"][1] < 0.9 * account["misfit"][0]
    assert refine("--status", "--config", config) == 0
    first = capsys.readouterr().out.splitlines()[3].split()
    assert first == ["1", "7", "gather", "done", "12", "of", "12", f"{account['misfit'][1]:.3f}", "2"]
    assert not list((data_dir / "refinements").iterdir()), "checkpoints are deleted at the end"


def test_what_is_missing_is_said_when_the_job_is_added(config, data_dir, queue, capsys):
    assert refine(9, "--queue", "--config", config) == 2
    assert "event 9: not in the store" in capsys.readouterr().err
    assert refine(7, "--queue", "--config", config) == 2
    assert "latents are no longer in the journal" in capsys.readouterr().err
    assert refine(7, "--queue", "--fetched", "--config", config) == 2
    assert "no recording is kept" in capsys.readouterr().err
    for wrong in ((), ("--work", "--status"), (7, "--work"), (7, "--drain"), ("--queue", "--status")):
        assert refine(*wrong, "--config", config) == 2
        assert "refine: " in capsys.readouterr().err
    assert queue.jobs() == []
    assert refine("--status", "--config", config) == 0
    assert "no job yet" in capsys.readouterr().out


def test_a_recording_that_was_replaced_meanwhile_is_not_inverted(add, run, queue, data_dir, gather):
    add()
    keep_given(data_dir, 1, 7, 2 * gather)
    run()
    (job,) = queue.jobs()
    assert job.state == FAILED and "its recording was replaced since; queue it again" in job.reason
    assert len(revisions(data_dir)) == 1


def test_an_error_fails_one_job_and_not_the_next(add, run, queue, data_dir, monkeypatch):
    real = refine_module.invert
    monkeypatch.setattr(
        refine_module, "invert", lambda *given: [][1] if given[0][0, 0] == 1.0 else real(*given)
    )
    with closing(Store(data_dir)) as store:
        start = store.get(7)
        entry = NewMap(
            (1, 7, start.model_hash),
            9,
            False,
            np.ones_like(start.velocity_mps),
            uncertainty(),
            start.provenance,
        )
        store.put([entry])
    add(7)
    add(8)
    run()
    assert states(queue) == [FAILED, DONE]
    assert "IndexError" in queue.jobs()[0].reason


def test_a_start_that_was_overtaken_is_not_refined_over(add, run, queue, data_dir, monkeypatch):
    add()
    real = refine_module.invert

    def invert_slowly(*given):
        with closing(Store(data_dir)) as store:
            start = store.get(7)
            key = (1, 7, start.model_hash)
            store.put([NewMap(key, 99, False, start.velocity_mps, start.uncertainty_mps, start.provenance)])
        return real(*given)

    monkeypatch.setattr(refine_module, "invert", invert_slowly)
    run()
    (job,) = queue.jobs()
    assert job.state == FAILED and "a map of later latents was stored meanwhile" in job.reason
    assert [one.revision for one in revisions(data_dir)] == [2, 1]


def test_a_job_cancelled_while_it_runs_stops_at_its_next_iteration_and_stores_nothing(
    add, run, queue, data_dir, monkeypatch, config, capsys
):
    number = add(iterations=1000)
    reached = []
    real = refine_module.invert

    def invert_watched(*given):
        told = given[5]

        def on_iteration(done, *more):
            reached.append(done)
            if done == 7:
                assert refine("--status", "--config", config, "--json") == 0
                (row,) = json.loads(capsys.readouterr().out)
                assert (row["state"], row["done"]) == (RUNNING, 5) and row["misfit"] > 0
                assert refine("--cancel", number, "--config", config) == 0
            told(done, *more)

        return real(*given[:5], on_iteration, *given[6:])

    monkeypatch.setattr(refine_module, "invert", invert_watched)
    run()
    assert reached[-1] == 7
    assert states(queue) == [CANCELLED] and len(revisions(data_dir)) == 1
    assert not job_folder(data_dir, number).exists()
    capsys.readouterr()
    assert refine("--cancel", number, "--config", config) == 2
    assert "expected one that waits or runs; it is cancelled" in capsys.readouterr().err
    with pytest.raises(JobError, match="job 9: .*there are 1 jobs"):
        queue.cancel(9)


def test_a_waiting_job_that_is_cancelled_is_never_taken(add, run, queue):
    queue.cancel(add())
    run()
    assert states(queue) == [CANCELLED]


def test_a_map_that_is_finished_after_its_job_was_cancelled_is_not_stored(add, queue, data_dir):
    number = add()
    assert queue.take().number == number
    start = revisions(data_dir)[0]
    entry = NewMap(
        (1, 7, start.model_hash), 99, False, start.velocity_mps, start.uncertainty_mps, start.provenance
    )
    queue.cancel(number)
    queue.store(number, entry)
    assert states(queue) == [CANCELLED] and len(revisions(data_dir)) == 1


def test_a_kill_at_any_write_leaves_a_job_with_its_map_or_without_both(add, queue, data_dir, tmp_path):
    start = revisions(data_dir)[0]
    entry = NewMap(
        (1, 7, start.model_hash), 99, False, start.velocity_mps, start.uncertainty_mps, start.provenance
    )
    steps = [add, queue.take, lambda: queue.put_back(True), queue.take, lambda: queue.store(1, entry)]
    check_kills(data_dir / FILE_NAME, ("refinement_job", "map"), steps, tmp_path / "images")


def test_two_workers_never_run_one_job(add, run, queue, data_dir):
    add()
    with lock(data_dir, LOCK_NAME), pytest.raises(InUseError, match="refine --work` is running there"):
        run()
    assert states(queue) == [WAITING]


def test_a_job_of_a_killed_worker_is_taken_up_again_and_one_that_kills_its_process_fails_in_the_end(
    add, queue, data_dir, models, run, monkeypatch
):
    add()
    queue.take()
    run()
    (job,) = queue.jobs()
    assert (job.state, job.interruptions) == (DONE, 1)
    add(8)
    died = []
    monkeypatch.setattr(
        refine_worker, "_run_here", lambda tasks: ((died.append(t) or t, None) for t in tasks)
    )
    work(data_dir, models, Log(data_dir / "log.jsonl"), drain=True)
    (_, job) = queue.jobs()
    assert job.state == FAILED and f"its process died {MAX_INTERRUPTIONS} times" in job.reason
    assert len(died) == MAX_INTERRUPTIONS


def test_a_worker_that_is_told_to_end_leaves_its_job_waiting_with_its_checkpoint(
    add, queue, data_dir, models, monkeypatch
):
    number = add()

    def told_to_end(tasks):
        task = next(tasks)
        write_checkpoint(task.folder, task.token, Checkpoint(task.inputs.sha256(), 5, 0.5, earth(100.0)))
        raise SystemExit

    monkeypatch.setattr(refine_worker, "_run_here", told_to_end)
    with pytest.raises(SystemExit):
        work(data_dir, models, Log(data_dir / "log.jsonl"))
    (job,) = queue.jobs()
    assert (job.state, job.interruptions) == (WAITING, 0)
    assert read_checkpoint(job_folder(data_dir, number)).done == 5


@pytest.fixture
def task(add, data_dir, models, tmp_path):
    """A task of 12 iterations, as its process gets it."""
    request = RefinementRequest(7, None, 12, GATHER, tmp_path / "gather.npy")
    folder = job_folder(data_dir, add())
    return Task(1, folder, new_token(folder), read_inputs(data_dir, models, request))


def watch(monkeypatch):
    """The ``resume_from`` of each inversion."""
    seen = []

    def invert_seen(*given):
        seen.append(given[7] if len(given) > 7 else None)
        return invert(*given)

    monkeypatch.setattr(refine_module, "invert", invert_seen)
    return seen


def test_an_interrupted_job_goes_on_from_its_checkpoint(task, monkeypatch):
    whole = run_task(task).found
    reached = read_checkpoint(task.folder)
    assert reached.done == 10 and reached.misfit > 0
    seen = watch(monkeypatch)
    result = run_task(task)
    ((velocity_mps, done),) = seen
    assert done == 10 and np.array_equal(velocity_mps, reached.velocity_mps)
    account = result.found.provenance["refinement"]
    assert account["settings"]["resumed_at"] == 10 and account["iterations"] == 12
    # Relative to the predicted map's misfit, as without an interruption.
    assert account["misfit"][0] == whole.provenance["refinement"]["misfit"][0]
    assert account["misfit"][1] < account["misfit"][0]


def test_a_job_killed_after_its_last_iteration_still_makes_a_map(task):
    reached = run_task(task).found.velocity_mps
    write_checkpoint(task.folder, task.token, Checkpoint(task.inputs.sha256(), 12, 0.1, reached))
    assert run_task(task).found is not None


def test_a_checkpoint_that_does_not_belong_to_the_job_is_not_used(task, monkeypatch):
    right = Checkpoint(task.inputs.sha256(), 5, 0.5, earth(100.0))
    seen = watch(monkeypatch)
    for wrong in (
        replace(right, inputs_sha256=hashlib.sha256(b"of another start").hexdigest()),
        replace(right, velocity_mps=earth(100.0)[1:]),
    ):
        write_checkpoint(task.folder, task.token, wrong)
        run_task(task)
    write_checkpoint(task.folder, task.token, right)
    path = task.folder / "checkpoint.npz"
    content = bytearray(path.read_bytes())
    # Within the map, which is the last and longest array.
    content[-earth(0.0).nbytes // 2 - 400] ^= 1
    path.write_bytes(content)
    run_task(task)
    path.write_bytes(content[:200])
    run_task(task)
    assert seen == [None] * 4
    write_checkpoint(task.folder, task.token, right)
    run_task(task)
    assert seen[4][1] == 5, "and the right one is"


def test_other_inputs_have_another_hash(task):
    inputs = task.inputs
    others = [
        replace(inputs, start=replace(inputs.start, velocity_mps=inputs.start.velocity_mps + 1)),
        replace(inputs, recorded=2 * inputs.recorded),
        replace(inputs, request=replace(inputs.request, prior="smooth")),
        replace(inputs, request=replace(inputs.request, iterations=13)),
    ]
    assert len({one.sha256() for one in (inputs, *others)}) == 5


def test_a_process_whose_job_was_given_to_another_stops(task):
    new_token(task.folder)
    result = run_task(task)
    assert result.state == FAILED and "same path on each worker" in result.reason
    assert read_checkpoint(task.folder) is None


def test_a_full_disk_costs_checkpoints_and_not_the_job(task, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(refine_worker, "write_checkpoint", full)
    assert run_task(task).found is not None


def test_a_result_that_cannot_be_stored_ends_the_worker_and_leaves_the_job(add, run, queue, monkeypatch):
    add()

    def full(*_):
        raise StoreError("store: cannot keep a map (database or disk is full)")

    monkeypatch.setattr(Store, "put_unless_newer", full)
    with pytest.raises(StoreError, match="disk is full"):
        run()
    assert states(queue) == [WAITING]
    monkeypatch.undo()


def test_a_jobs_process_takes_the_lowest_priority_before_it_loads_anything(monkeypatch):
    steps = []

    class Pipe:
        def recv(self):
            steps.append("received")

        def send(self, result):
            steps.append(result)

    monkeypatch.setattr(os, "nice", lambda by: steps.append(f"nice {by}"))
    monkeypatch.setattr(refine_worker, "live_with_parent", lambda: steps.append("watches its parent"))
    monkeypatch.setattr(refine_worker, "run_task", lambda task: "result")
    refine_worker._compute(Pipe())
    assert steps == ["nice 19", "watches its parent", "received", "result"]


def test_a_worker_killed_by_sigkill_leaves_no_process_and_the_next_one_goes_on(add, config, queue, data_dir):
    """A real worker with its real process; the next one is a real one as well."""
    number = add(iterations=100_000)
    command = [sys.executable, "-m", "epic", "central", "refine", "--work", "--config", str(config)]
    worker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        folder = job_folder(data_dir, number)
        wait_until(lambda: read_checkpoint(folder), timeout_s=300, what="checkpoint")
        (child,) = children(worker.pid, "spawn_main")
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), timeout_s=60, what="end of its process")
        done = read_checkpoint(folder).done
        worker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda: read_checkpoint(folder).done > done, timeout_s=300, what="more iterations")
        assert [(job.state, job.interruptions) for job in queue.jobs()] == [(RUNNING, 1)]
        queue.cancel(number)
        wait_until(lambda: not children(worker.pid, "spawn_main"), timeout_s=60, what="end of its process")
        worker.terminate()
        assert worker.wait(timeout=60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert states(queue) == [CANCELLED] and len(revisions(data_dir)) == 1


def children(pid, what):
    """Child processes whose command line has ``what``."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found if what in Path(f"/proc/{one}/cmdline").read_text()]


@pytest.mark.long
def test_a_cluster_runs_jobs_at_once_and_stores_the_same_maps(add, queue, data_dir, models):
    add(7)
    add(8)
    with two_processes() as scheduler:
        work(data_dir, models, Log(data_dir / "log.jsonl"), scheduler, drain=True)
    assert states(queue) == [DONE, DONE]
    seven, eight = (revisions(data_dir, event)[0].velocity_mps for event in (7, 8))
    np.testing.assert_array_equal(seven, eight)
