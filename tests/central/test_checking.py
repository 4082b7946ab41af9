"""A centre that checks its maps by physics while it works: the newest first, and nothing waits for it."""

import json
import multiprocessing
import os
import signal
import threading
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import FakeDecoder
from releases import KEY
from small_waves import WAVES, earth, uncertainty
from tiny import waves_bundle
from waiting import wait_until

from central.config import CentralConfig, ModelSection
from central.service import Service
from central.storage.database import connect
from central.storage.journal import Journal
from central.storage.map_store import NewMap, Store
from central.updates.rollout_store import RolloutStore
from central.verification import checking
from central.verification.checking import Checking
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log
from models.inversion.ood import measure_ood
from physics.modelling import model_gathers

pytestmark = pytest.mark.slow

TRUTH = earth(300.0)
UNKNOWN = bytes(8)
# A process loads TensorFlow and compiles, at the lowest priority of a machine that may be busy.
FIRST_S = 240.0


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """What `epic convert` leaves, but for the decoder's network, which no check needs."""
    folder = tmp_path_factory.mktemp("release")
    bundle = waves_bundle(folder)
    length = bundle.output.shape[1]
    latents = np.random.default_rng(5).normal(0.0, 10.0, (200, 2, length)) * bundle.output.scale
    (folder / "decoder").mkdir()
    measure_ood(latents, latents[:20]).save(folder / "decoder" / "familiarity.npz")
    (folder / "decoder" / "decoder.json").write_text(json.dumps({"model_hash": bundle.model_hash.hex()}))
    return folder, bundle


@pytest.fixture(scope="module")
def latents(release):
    """What both devices make of TRUTH: payloads by device."""
    (gather,) = model_gathers(TRUTH[None, None], WAVES)
    encoder = Encoder(release[1])
    parts = [gather[:, :, list(group)] for group in WAVES.device_receivers]
    return [encoder.encode_recording(part).tobytes() for part in parts]


class TrueDecoder(FakeDecoder):
    """Draws TRUTH of anything."""

    n_devices = 2
    acquisition = WAVES

    def __init__(self, latent):
        self.latent = latent

    def decode(self, latents_int8, present):
        return TRUTH[None], uncertainty()[None]


@pytest.fixture
def put(data_dir, release, latents):
    """Stores a map and the latents it was drawn from: ``put(event, ...)``; another call is another revision."""

    def put_map(event, velocity_mps=TRUTH, devices=(0, 1), model_hash=release[1].model_hash):
        with closing(Journal(data_dir)) as journal, closing(Store(data_dir)) as store:
            key = (1, event, model_hash)
            boot = 1 + len(journal.of_event(key))
            records = [
                packet.Record(
                    packet.LATENT, d, 1, boot, event, event, model_hash=model_hash, payload=latents[d]
                )
                for d in devices
            ]
            new = journal.commit([(record, 5, 9) for record in records]).new
            provenance = {
                "devices": list(devices),
                "model_hash": model_hash.hex(),
                "sample_time_us": 1,
                "received_bytes": 9,
                "acquisition": WAVES.to_dict(),
            }
            last = new[-1].id if new else event
            store.put([NewMap(key, last, False, velocity_mps, uncertainty(), provenance)])

    return put_map


class EveryMapAgrees:
    """A checking process that finds every map to agree with its latents."""

    def ask(self, stored, latents, stopping):
        return checking.CheckResult(0.1, {"latents": 0.0, "checked_us": 1})


class Checks:
    """The work on a thread, what it logs, and its process."""

    def __init__(self, data_dir, folder, models):
        self._path = folder / "central.jsonl"
        self.work = Checking(data_dir, models, Log(self._path))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.work.run, args=(self._stop,))
        self._thread.start()

    def logged(self, what):
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [line for line in lines if line["message"] == what]

    def checked(self):
        return [(line["event"], line["revision"]) for line in self.logged("checked")]

    def await_checked(self, count):
        return wait_until(lambda: len(done := self.checked()) == count and done, FIRST_S, f"{count} checks")

    def stop(self):
        self._stop.set()
        self._thread.join()


def processes():
    return [child for child in multiprocessing.active_children() if child.name == "checking"]


def the_process():
    (child,) = wait_until(processes, what="the process that checks")
    return child.pid


@pytest.fixture
def start(data_dir, tmp_path, release):
    """Starts the work over ``data_dir``: ``start(configured)``."""
    running = []

    def start_checks(configured=True):
        section = ModelSection(bundle=release[0] / "bundle", decoder=release[0] / "decoder")
        running.append(Checks(data_dir, tmp_path, [section] if configured else []))
        return running[-1]

    yield start_checks
    for checks in running:
        checks.stop()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(checking, "AGAIN_S", 0.1)


def newest(data_dir, event):
    with closing(Store(data_dir)) as store:
        return store.get(event)


@pytest.fixture
def store(data_dir):
    with closing(Store(data_dir)) as opened:
        yield opened


def test_unchecked_maps_come_the_last_drawn_first_and_only_the_newest_of_an_event(put, store):
    for event in (1, 2, 3, 2):
        put(event)
    put(4, model_hash=UNKNOWN)
    last = store.last_id()
    assert last == 5

    def unchecked(after=0, through=last, **choice):
        while (id := store.newest_unchecked(after, through, **choice)) is not None:
            yield id
            through = id - 1

    assert list(unchecked()) == [5, 4, 3, 1]
    assert list(unchecked(after=1, through=4)) == [4, 3]
    assert list(unchecked(without=[UNKNOWN])) == [4, 3, 1]
    assert list(unchecked(survey=2)) == [] and list(unchecked(survey=1)) == [5, 4, 3, 1]
    store.amend(store.by_id(3), "consistency", {"latents": 0.3, "checked_us": 7})
    # As the command left it once, and what SQLite takes for no JSON.
    store.amend(store.by_id(1), "consistency", {"latents": 0.3})
    store.amend(store.by_id(5), "unfamiliarity", float("nan"))
    assert list(unchecked()) == [4]


def test_it_does_not_read_every_map_to_find_one(put, data_dir):
    put(1)
    seen = []
    with closing(Store(data_dir)) as store:
        store._database.set_trace_callback(seen.append)
        store.newest_unchecked(0, 1)
    (query,) = seen
    with closing(connect(data_dir)) as database:
        plan = " ".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "USING INDEX checked_map (<expr>=? AND rowid>? AND rowid<?)" in plan


@pytest.fixture
def centre(tmp_path, data_dir, release):
    """A centre at work with ``consistency_check = true``, and its log."""
    central = {
        "listen": "tcp://127.0.0.1:*",
        "data_dir": data_dir,
        "deadline_s": 60.0,
        "pictures": False,
        "consistency_check": True,
    }
    model = {"bundle": release[0] / "bundle", "decoder": release[0] / "decoder"}
    config = CentralConfig.model_validate({"central": central, "model": [model]})
    bundle = release[1]
    decoder = TrueDecoder(bundle.output.shape[1])
    service = Service(config, {bundle.model_hash: decoder}, Log(tmp_path / "central.jsonl"))
    thread = threading.Thread(target=service.run)
    thread.start()
    yield service, thread
    service.stop()
    thread.join()


def test_a_centre_checks_what_it_draws_the_newest_first_and_draws_on_meanwhile(
    centre, dealers, latents, release, data_dir, tmp_path
):
    service, thread = centre
    sockets = [dealers(service.receiver.endpoint) for _ in latents]

    def send(event):
        for device, payload in enumerate(latents):
            fields = {"model_hash": release[1].model_hash, "payload": payload}
            sockets[device].send(packet.Record(packet.LATENT, device, 1, 1, event, event, **fields))
            assert sockets[device].answer().type == packet.ACK

    def logged(what):
        lines = [json.loads(line) for line in (tmp_path / "central.jsonl").read_text().splitlines()]
        return [line for line in lines if line["message"] == what]

    send(1)
    pid = wait_until(the_process, what="the process")
    os.kill(pid, signal.SIGSTOP)
    for event in (2, 3, 4):
        send(event)
    wait_until(lambda: len(logged("map")) == 4, what="maps, while a check is held up")
    assert logged("checked") == []
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: len(logged("checked")) == 4, FIRST_S, "checks")
    assert [line["event"] for line in logged("checked")] == [1, 4, 3, 2]
    line = logged("checked")[0]
    consistency = newest(data_dir, 1).provenance["consistency"]
    assert consistency["latents"] == line["latents"] and consistency["checked_us"] > 0
    assert (line["survey"], line["revision"]) == (1, 1) and line["seconds"] > 0
    assert service.live.checks == {"checked": 4}
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    # A check that is being made, for however long, does not hold up the end.
    os.kill(pid, signal.SIGSTOP)
    send(5)
    wait_until(lambda: len(logged("map")) == 5, what="map")
    service.stop()
    thread.join()
    assert processes() == [] and len(logged("checked")) == 4


def test_what_cannot_be_checked_is_said_once_and_holds_up_nothing(start, put, data_dir):
    put(1)
    put(2, devices=())
    put(3, velocity_mps=np.full_like(TRUTH, np.nan))
    put(4, model_hash=UNKNOWN)
    put(5, model_hash=UNKNOWN)
    checks = start()
    assert checks.await_checked(1) == [(1, 1)]
    put(1)
    assert checks.await_checked(2) == [(1, 1), (1, 2)]
    failed = {line["event"]: line["reason"] for line in checks.logged("check_failed")}
    assert list(failed) == [5, 3, 2], "the last drawn first, and a model that is not there once"
    assert len(checks.logged("check_failed")) == 3
    assert f"encoder {UNKNOWN.hex()}" in failed[5] and "finite, positive velocities" in failed[3]
    assert "no longer in the journal" in failed[2]
    assert checks.work.counts == {"checked": 2, "failed": 3}
    assert "consistency" not in newest(data_dir, 3).provenance


def test_a_damaged_map_fails_once_and_holds_up_no_other(put, data_dir, store, tmp_path):
    for event in (1, 2, 3):
        put(event)
    with closing(connect(data_dir)) as database:
        database.execute("UPDATE map SET checksum = checksum + 1 WHERE event = 2")
    log = tmp_path / "central.jsonl"
    work = Checking(data_dir, [], Log(log))
    work._process = EveryMapAgrees()
    with closing(Journal(data_dir)) as journal:
        while work._check_next(store, journal, threading.Event()):
            pass
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["message"], line["event"]) for line in lines] == [
        ("checked", 3),
        ("check_failed", 2),
        ("checked", 1),
    ]
    assert (lines[1]["survey"], lines[1]["revision"]) == (1, 1)
    assert "damaged on the disk" in lines[1]["reason"]
    assert work.counts == {"checked": 2, "failed": 1}


def test_a_model_that_was_rolled_out_is_found_and_one_that_comes_is_tried_again(
    start, put, release, data_dir
):
    put(1)
    checks = start(configured=False)
    wait_until(lambda: checks.logged("check_failed"), FIRST_S, "the failure")
    with closing(RolloutStore(data_dir, create=True)) as rollouts:
        rollouts.create(release[0], KEY, None, 0)
    checks.work.adopt()
    put(2)
    assert checks.await_checked(1) == [(2, 1)]


def test_a_process_that_dies_is_started_again_and_its_map_is_checked(start, put, impatient):
    put(1)
    put(2)
    checks = start()
    os.kill(the_process(), signal.SIGKILL)
    assert checks.await_checked(2) == [(2, 1), (1, 1)]
    (line,) = checks.logged("check_lost")
    assert (line["event"], line["reason"]) == (2, "the process ended with -9")


def test_a_map_over_which_it_dies_again_does_not_keep_the_others_from_their_turn(start, put, impatient):
    put(1)
    put(2)
    checks = start()
    for times in (1, 2):
        os.kill(the_process(), signal.SIGKILL)
        wait_until(lambda times=times: len(checks.logged("check_lost")) == times, what="word of it")
    assert checks.await_checked(1) == [(1, 1)]
    (line,) = checks.logged("check_failed")
    assert line["event"] == 2 and "twice" in line["reason"]


def test_a_result_that_finds_no_room_is_kept_when_there_is_room(start, put, impatient, data_dir):
    put(1)
    with closing(connect(data_dir)) as disk:
        disk.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON map BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
        checks = start()
        wait_until(lambda: checks.logged("check_commit_failed"), FIRST_S, "word of it")
        assert checks.checked() == []
        disk.execute("DROP TRIGGER full")
    assert checks.await_checked(1) == [(1, 1)]
    assert newest(data_dir, 1).provenance["consistency"]["latents"] < 1.4
