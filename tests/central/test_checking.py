"""A centre that checks its maps by physics: the last drawn first, and whatever goes wrong costs only the check."""

import json
import os
import shutil
import signal
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH
from small_waves import WAVES, earth, uncertainty
from tiny import ENCODER, bundle_fields
from waiting import wait_until

import central.checking
from central.checking import Checking, Unlooked
from central.config import CentralConfig, ModelSection
from central.database import connect
from central.evidence import model_of
from central.journal import Journal
from central.rollout_store import RolloutStore
from central.service import Service
from central.store import NewMap, Store
from firmware_py import packet
from firmware_py.bundle import create_bundle
from firmware_py.log import Log
from models.familiarity import measure_familiarity

# A process of its own loads TensorFlow, on a machine that may be busy.
STARTED_S = 180.0


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A model whose devices are two: bundle and decoder's folder."""
    folder = tmp_path_factory.mktemp("model")
    fields = {**bundle_fields(), "acquisition": WAVES.to_dict()}
    bundle = create_bundle(folder / "bundle", ENCODER, fields)
    shape = (200, 2, bundle.output.shape[1])
    latents = np.random.default_rng(5).normal(0.0, 10.0, shape) * bundle.output.scale
    (folder / "decoder").mkdir()
    measure_familiarity(latents, latents[:20]).save(folder / "decoder" / "familiarity.npz")
    return ModelSection(bundle=folder / "bundle", decoder=folder / "decoder"), bundle


@pytest.fixture
def put(data_dir):
    """Stores a map, ``put(event, model_hash, velocity_mps, records, **provenance)``, drawn from as many records."""

    def put_map(event, model_hash=MODEL_HASH, velocity_mps=None, records=0, latent=16, **provenance):
        velocity_mps = earth(300.0) if velocity_mps is None else velocity_mps
        fields = {"model_hash": model_hash, "payload": np.full(latent, 5, np.int8).tobytes()}
        group = [packet.Record(packet.LATENT, d, 1, 1, event, event, **fields) for d in range(records)]
        with closing(Journal(data_dir)) as journal:
            new = journal.commit([(record, 5, 60) for record in group]).new
        last = new[-1].id if new else 0
        with closing(Store(data_dir)) as store:
            store.put([NewMap((1, event, model_hash), last, False, velocity_mps, uncertainty(), provenance)])

    return put_map


def given(unlooked, store, without=()):
    """Events in the order in which they are given."""
    events = []
    while found := unlooked.next(store, set(without)):
        events.append(found.event)
    return events


def test_the_last_drawn_comes_first_and_each_once(data_dir, put):
    unlooked = Unlooked()
    for event in (1, 2, 3):
        put(event)
    put(4, consistency={"latents": 0.5})
    with closing(Store(data_dir)) as store:
        assert unlooked.next(store, set()).event == 3
        put(5)
        put(6, replaced=float("nan"))
        assert unlooked.next(store, set()).event == 6, "what came meanwhile goes before what is older"
        assert given(unlooked, store) == [5, 2, 1]
        assert given(unlooked, store) == []
        put(2)
        assert given(unlooked, store) == [2], "a revision is another map"
        assert given(Unlooked(), store) == [2, 6, 5, 3, 1], "of an event only its newest"


def test_what_is_put_off_comes_last_and_maps_of_a_bad_model_not_at_all(data_dir, put):
    unlooked = Unlooked()
    for event, model_hash in ((1, MODEL_HASH), (2, OTHER_HASH), (3, OTHER_HASH), (4, MODEL_HASH)):
        put(event, model_hash)
    with closing(Store(data_dir)) as store:
        unlooked.later(unlooked.next(store, set()).id)
        assert given(unlooked, store, {OTHER_HASH}) == [1, 4]


def test_a_checked_map_is_found_by_the_index(data_dir, put):
    put(1)
    with closing(Store(data_dir)) as store, closing(connect(data_dir)) as database:
        asked = []
        store._database.set_trace_callback(asked.append)
        store.unchecked(0, 9, {OTHER_HASH})
        plans = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
    assert any("unchecked_map (<expr>=? AND rowid>? AND rowid<?)" in line for line in plans)
    assert not any("TEMP B-TREE" in line for line in plans)


class Maps:
    """A decoder of ``section``'s devices that draws the same earth of anything."""

    n_devices = 2
    sha256 = "ab" * 32
    acquisition = WAVES

    def __init__(self, bundle):
        self.coding = bundle.coding
        self.latent = bundle.output.shape[1]
        self.folder = bundle.folder

    def decode_batch(self, latents_int8, present):
        n = len(present)
        return (
            np.broadcast_to(earth(300.0), (n, 1, *earth(0.0).shape)),
            np.broadcast_to(uncertainty(), (n, 1, *earth(0.0).shape)),
        )

    def unfamiliarity(self, latents_int8, present, rates):
        return None


def logged(path: Path, what):
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["what"] == what]


def test_a_centre_checks_what_it_draws_and_a_later_revision_again(tmp_path, section, dealers):
    model, bundle = section
    central_section = {
        "listen": "tcp://127.0.0.1:*",
        "data_dir": tmp_path / "data",
        "deadline_s": 0.3,
        "pictures": False,
        "check": True,
    }
    config = CentralConfig.model_validate({"central": central_section, "model": [model.model_dump()]})
    log = tmp_path / "central.jsonl"
    service = Service(config, {bundle.model_hash: Maps(bundle)}, Log(log))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        device = dealers(service.receiver.endpoint)
        for number in range(2):
            fields = {"model_hash": bundle.model_hash, "sample_time_us": 1_700_000_000_000_000}
            payload = np.full(bundle.output.shape[1], 5, np.int8).tobytes()
            device.send(packet.Record(packet.LATENT, number, 1, 1, 1, 7, payload=payload, **fields))
            assert device.answer().type == packet.ACK
            wait_until(
                lambda n=number: len(logged(log, "checked")) == n + 1, timeout_s=STARTED_S, what="a check"
            )
    finally:
        service.stop()
        thread.join()
    with closing(Store(tmp_path / "data")) as store:
        complete, partial = store.revisions(7)
    lines = logged(log, "checked")
    assert [(line["event"], line["revision"]) for line in lines] == [(7, 1), (7, 2)]
    for stored, line in zip((partial, complete), lines, strict=True):
        assert stored.provenance["consistency"] == {"latents": line["latents"]}
        assert line["seconds"] > 0 and line["survey"] == 1
    assert service.live.checks == {"checked": 2}
    assert service.failure is None


def test_what_cannot_be_checked_is_said_once_and_the_rest_is_checked(
    data_dir, put, section, tmp_path, monkeypatch
):
    monkeypatch.setattr(central.checking, "PAUSE_S", 0.5)
    model, bundle = section
    good = {"model_hash": bundle.model_hash, "records": 2, "latent": bundle.output.shape[1]}
    put(1, **good)
    put(2, MODEL_HASH)
    put(3, MODEL_HASH)
    put(4, bundle.model_hash)
    put(5, velocity_mps=np.full_like(earth(0.0), np.nan), **good)
    with closing(connect(data_dir)) as disk:
        disk.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON map BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    log, stopping = tmp_path / "central.jsonl", threading.Event()
    checking = Checking(data_dir, [model], Log(log))
    thread = threading.Thread(target=checking.run, args=(stopping,))
    thread.start()

    def checked(event):
        return [line for line in logged(log, "checked") if line["event"] == event]

    try:
        wait_until(lambda: logged(log, "check_not_kept"), timeout_s=STARTED_S, what="a full disk")
        assert "disk is full" in logged(log, "check_not_kept")[0]["reason"]
        with closing(connect(data_dir)) as disk:
            disk.execute("DROP TRIGGER full")
        wait_until(lambda: checked(1), what="the check when there is room")
        failed = {line["event"]: line["reason"] for line in logged(log, "check_failed")}
        assert sorted(failed) == [3, 4, 5], "of a model that is not known the last map alone"
        assert "drawn from latents of encoder" in failed[3]
        assert "not in the journal any more" in failed[4]
        assert "its map cannot be modelled" in failed[5]
        os.kill(checking._process.pid, signal.SIGKILL)
        put(6, **good)
        wait_until(lambda: checked(6), timeout_s=STARTED_S, what="a check by another process")
        assert logged(log, "check_lost")[0]["event"] == 6
        assert len(logged(log, "check_failed")) == 3
        last = checking._process
    finally:
        stopping.set()
        thread.join()
    assert not last.is_alive()
    assert checking.counts["failed"] == 3 and checking.counts["checked"] == 2


def test_the_model_of_a_map_may_have_been_rolled_out(data_dir, put, section):
    model, bundle = section
    put(1, bundle.model_hash)
    folder = data_dir / "rollouts" / "3"
    shutil.copytree(model.bundle, folder / "bundle")
    with closing(RolloutStore(data_dir)), closing(connect(data_dir)) as database:
        row = (3, "tiny", bundle.model_hash, 5, 0, "all", "")
        database.execute("INSERT INTO rollout VALUES (?,?,?,?,?,?,?)", row)
    with closing(Store(data_dir)) as store:
        found, its_bundle = model_of(data_dir, store.get(1), [])
    assert found.decoder == folder / "decoder" and its_bundle.model_hash == bundle.model_hash
