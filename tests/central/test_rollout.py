"""Rollouts at the centre: who is offered what, when, and what stops it. Devices are messages here."""

import hashlib
import json
import threading
from contextlib import closing

import pytest
from fake_decoder import MODEL_HASH, OTHER_HASH, SURVEY, FakeDecoder, latent_record
from releases import KEY, make_release
from waiting import wait_until

import epic
from central.config import ModelSection
from central.storage.database import StoreError, connect
from central.storage.journal import Journal
from central.updates import rollout as module
from central.updates import rollout_store as store_module
from central.updates.rollout import Rollouts
from central.updates.rollout_cli import check_none_running
from central.updates.rollout_store import DeviceState, RolloutError, RolloutStore, check_release
from firmware_py.inference.bundle import load_bundle
from firmware_py.protocol import packet
from firmware_py.protocol.health_messages import Health
from firmware_py.protocol.update_messages import (
    Chunk,
    ChunkRequest,
    NotAvailable,
    Offer,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)
from firmware_py.runtime.log import Log
from firmware_py.updates.archive import split_archive, unpack, verify_statement
from physics.acquisition import Acquisition


def make_model(folder, name="new", **options):
    """A released model: bundle and decoder of one conversion, as far as the command looks."""
    bundle = load_bundle(make_release(folder / "bundle", name, **options))
    (folder / "decoder").mkdir()
    (folder / "decoder" / "decoder.json").write_text(json.dumps({"model_hash": bundle.model_hash.hex()}))
    return folder


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


class Centre:
    """The rollouts of a centre at work, and devices that speak to it."""

    def __init__(self, data_dir, load):
        self.data_dir = data_dir
        self.models = {MODEL_HASH: FakeDecoder()}
        self.log_path = data_dir / "log.jsonl"
        self.rollouts = Rollouts(data_dir, self.models, load, self.models.__setitem__, Log(self.log_path))
        self.rollouts.restore()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.rollouts.watch, args=(self._stopping,))
        self._thread.start()

    def stop(self):
        self._stopping.set()
        self._thread.join()

    def stored(self, version=None):
        store = RolloutStore(self.data_dir)
        try:
            return next(r for r in store.rollouts() if version in (None, r.version))
        finally:
            store.close()

    def kept(self, device):
        """What is on the disk of a device."""
        return self.stored().devices.get((1, device), DeviceState("none"))

    def wait_for_state(self, device, state):
        wait_until(lambda: self.kept(device).state == state, what=f"{state} on the disk")

    def took_up(self, version):
        lines = map(json.loads, self.log_path.read_text().splitlines())
        return any(line["message"] == "rollout" and line["version"] == version for line in lines)

    def tell(self, device, message, model_hash=MODEL_HASH):
        """The answers to a device's message."""
        record = packet.Record(
            packet.UPDATE, device, 1, 1, 1, model_hash=model_hash, payload=encode_message(message)
        )
        answers = self.rollouts.handle(record, 100)
        assert all((a.type, a.device, a.survey) == (packet.UPDATE, device, 1) for a in answers)
        return [decode_message(answer.payload) for answer in answers]

    def asks(self, device, running=0):
        """What a device is offered when it says what it runs; None for nothing."""
        heard, *offers = self.tell(device, Report("running", running))
        assert heard == ReportAck(running)
        return offers[0] if offers else None

    def health(self, device):
        record = packet.Record(packet.HEALTH, device, 1, 1, 1, model_hash=MODEL_HASH)
        answer = self.rollouts.offer(record)
        return answer and decode_message(answer.payload)

    def deliver(self, device, model_hash, boot=1):
        journal = Journal(self.data_dir)
        record = latent_record(device=device, model_hash=model_hash, boot=boot)
        journal.commit([(record, module.now_us(), 100)])
        journal.close()


@pytest.fixture
def centre(data_dir, monkeypatch):
    """Starts centres on ``data_dir``; ``centre(load)``."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    running = []

    def start(load=lambda section: (load_bundle(section.bundle).model_hash, FakeDecoder())):
        running.append(Centre(data_dir, load))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def roll_out(centre, folder, version=None, canaries=0, boards=()):
    """Make a rollout and wait until the centre has taken it up; returns its version."""
    store = RolloutStore(centre.data_dir)
    try:
        made = store.create(folder, KEY, version, canaries, boards)
    finally:
        store.close()
    wait_until(lambda: centre.took_up(made), what="take-up")
    return made


def test_nothing_is_offered_before_a_rollout(centre):
    one = centre()
    assert one.asks(0) is None
    assert one.health(0) is None


def test_a_device_gets_the_archive_piece_by_piece_after_the_decoder_is_there(centre, model, tmp_path):
    one = centre()
    roll_out(one, model)
    new_hash = load_bundle(model / "bundle").model_hash
    assert set(one.models) == {MODEL_HASH, new_hash}, "the old decoder stays"
    offer = one.asks(3)
    assert isinstance(offer, Offer)
    statement = verify_statement(offer.statement, offer.signature, KEY.verify_key)
    assert (offer.version, statement.version, statement.model_hash) == (1, 1, new_hash)
    archive = b""
    while len(archive) < offer.archive_bytes:
        (chunk,) = one.tell(3, ChunkRequest(offer.sha256, len(archive), 1000))
        assert isinstance(chunk, Chunk)
        assert chunk.offset == len(archive)
        archive += chunk.data
    assert hashlib.sha256(archive).digest() == offer.sha256
    assert split_archive(archive)[:2] == (offer.statement, offer.signature)
    unpack(archive, KEY.verify_key, tmp_path / "unpacked")
    wait_until(lambda: one.kept(3).bytes == len(archive), what="progress on the disk")
    assert one.tell(3, Report("running", 1), new_hash) == [ReportAck(1)]
    one.wait_for_state(3, "running")


def test_health_records_bring_the_offer_but_not_to_a_busy_or_finished_device(centre, model):
    one = centre()
    roll_out(one, model)
    offer = one.health(3)
    assert isinstance(offer, Offer)
    one.tell(3, ChunkRequest(offer.sha256, 0, 100))
    assert one.health(3) is None, "it is downloading"
    assert one.asks(3) == offer, "it has started again, and goes on"
    one.tell(3, Report("running", 1))
    assert one.health(3) is None
    assert one.asks(3, running=1) is None


def test_canaries_first_and_the_rest_when_they_deliver(centre, model):
    one = centre()
    roll_out(one, model, canaries=2)
    new_hash = load_bundle(model / "bundle").model_hash
    offer = one.asks(0)
    assert one.asks(1) == offer
    assert one.asks(2) is None
    assert one.tell(2, ChunkRequest(offer.sha256, 0, 100)) == [NotAvailable(offer.sha256)]
    for device in (0, 1):
        one.tell(device, Report("running", 1), new_hash)
    one.deliver(0, new_hash)
    one.deliver(1, MODEL_HASH)
    one.wait_for_state(1, "running")
    assert one.stored().stage == "canary", "one canary has delivered nothing of the new model"
    assert one.asks(2) is None
    one.deliver(1, new_hash, boot=2)
    wait_until(lambda: one.stored().stage == "all", what="the rest")
    assert one.asks(2) == offer


def test_a_failed_device_stops_the_rollout_and_says_why(centre, model):
    one = centre()
    roll_out(one, model)
    offer = one.asks(0)
    one.asks(1)
    assert one.tell(0, Report("failed", 1, "golden vectors")) == [ReportAck(1)]
    assert one.asks(2) is None
    assert one.tell(1, ChunkRequest(offer.sha256, 0, 100)) == [NotAvailable(offer.sha256)]
    assert one.asks(0) is None
    wait_until(lambda: one.stored().stage == "stopped", what="stop on the disk")
    assert one.stored().reason == "device 0 of survey 1: golden vectors"
    assert one.kept(0).reason == "golden vectors"
    assert one.tell(1, Report("running", 1)) == [ReportAck(1)], "who has it already is heard all the same"
    one.wait_for_state(1, "running")


def test_a_failure_of_the_rollout_before_does_not_stop_the_one_that_takes_its_place(
    centre, model, tmp_path, monkeypatch
):
    """The device says so between the centre's look at the states and its look at what is new."""
    one = centre()
    roll_out(one, model)
    one.asks(0)
    newest = RolloutStore.newest

    def newest_after_a_failure(store):
        found = newest(store)
        if found and found[0] == 2 and not one.took_up(2):
            one.tell(0, Report("failed", 1, "golden vectors"))
        return found

    monkeypatch.setattr(RolloutStore, "newest", newest_after_a_failure)
    roll_out(one, make_model(tmp_path / "next", "next", encoder=b"another"))
    one.asks(1)
    one.wait_for_state(1, "offered")
    assert one.stored(2).stage == "all"


def test_a_device_that_declines_stops_nothing_and_is_no_canary(centre, model):
    one = centre()
    roll_out(one, model, canaries=1, boards=["esp32-s3"])
    one.asks(0)
    assert one.tell(0, Report("declined", 1, "for esp32-s3")) == [ReportAck(1)]
    assert one.asks(1) is not None
    assert one.asks(0) is None
    assert one.asks(2) is None
    one.wait_for_state(0, "declined")
    assert one.stored().stage == "canary"


def test_a_device_of_an_unknown_model_is_not_heard_so_that_it_goes_back(centre):
    assert centre().tell(0, Report("running", 9), b"unknown!") == []


def test_a_model_that_cannot_be_loaded_is_offered_to_nobody(centre, model):
    def load(section):
        raise ValueError("no such layer")

    one = centre(load)
    store = RolloutStore(one.data_dir)
    store.create(model, KEY, None, 0)
    store.close()
    wait_until(lambda: one.stored().stage == "stopped", what="stop")
    assert one.stored().reason == "its decoder cannot be loaded: no such layer"
    assert one.asks(0) is None


def test_one_that_is_stopped_while_its_decoder_is_loaded_is_offered_to_nobody(centre, model, monkeypatch):
    def load(section):
        store = RolloutStore(one.data_dir)
        store.set_stage(1, "stopped", "by the operator")
        store.close()
        # The next look may be a long time coming.
        monkeypatch.setattr(module, "POLL_S", 60.0)
        return load_bundle(section.bundle).model_hash, FakeDecoder()

    one = centre(load)
    assert roll_out(one, model) == 1
    assert one.asks(0) is None


def test_what_the_operator_stops_is_logged_once_and_offered_no_more(centre, model):
    one = centre()
    roll_out(one, model)
    assert one.asks(0)
    store = RolloutStore(one.data_dir)
    store.set_stage(1, "stopped", "by the operator")
    store.close()

    def said():
        lines = map(json.loads, one.log_path.read_text().splitlines())
        return [line["reason"] for line in lines if line["message"] == "rollout_stopped"]

    wait_until(said, what="the stop")
    assert one.asks(1) is None
    assert said() == ["by the operator"]


def test_a_new_rollout_takes_the_place_of_the_one_before(centre, model, tmp_path):
    one = centre()
    roll_out(one, model)
    before = one.asks(0)
    roll_out(one, make_model(tmp_path / "next", "next", encoder=b"another"), version=5)
    after = one.asks(0)
    assert (before.version, after.version) == (1, 5)
    assert one.tell(0, ChunkRequest(before.sha256, 0, 100)) == [NotAvailable(before.sha256)]
    assert one.stored(1).stage == "superseded"


def test_the_way_back_is_the_older_model_under_a_new_version(centre, model, tmp_path):
    one = centre()
    decoder = FakeDecoder.sha256
    first = make_model(tmp_path / "first", "first", encoder=b"another", decoder_sha256=decoder)
    assert [roll_out(one, folder) for folder in (first, model, first)] == [1, 2, 3]
    assert one.asks(0, running=2).version == 3


def test_an_encoder_with_another_decoder_than_the_one_at_work_is_not_offered(centre, model):
    one = centre()
    one.models[load_bundle(model / "bundle").model_hash] = FakeDecoder()
    store = RolloutStore(one.data_dir)
    store.create(model, KEY, None, 0)
    store.close()
    wait_until(lambda: one.stored().stage == "stopped", what="stop")
    assert "another decoder of this encoder is in use" in one.stored().reason


def test_after_a_restart_of_the_centre_everything_goes_on(centre, model, tmp_path):
    one = centre()
    roll_out(one, model, canaries=1)
    old_hash = load_bundle(model / "bundle").model_hash
    one.asks(0)
    one.tell(0, Report("running", 1), old_hash)
    one.deliver(0, old_hash)
    roll_out(one, make_model(tmp_path / "next", "next", encoder=b"another"), canaries=1)
    one.asks(4)
    one.stop()
    again = centre()
    next_hash = load_bundle(tmp_path / "next" / "bundle").model_hash
    assert set(again.models) == {MODEL_HASH, old_hash, next_hash}, "records of the former may still come"
    assert again.asks(4).version == 2
    assert again.asks(0, running=1) is None, "device 4 is the canary still"


def test_a_former_model_without_records_is_not_loaded_again(centre, model, tmp_path):
    one = centre()
    roll_out(one, model)
    roll_out(one, make_model(tmp_path / "next", "next", encoder=b"another"))
    one.stop()
    assert load_bundle(model / "bundle").model_hash not in centre().models


@pytest.mark.parametrize("payload", [b"", b"\xff" * 40, encode_message(NotAvailable(bytes(32)))])
def test_what_is_no_question_is_not_answered(centre, payload):
    record = packet.Record(packet.UPDATE, 0, 1, 1, 1, model_hash=MODEL_HASH, payload=payload)
    assert centre().rollouts.handle(record, 60) == []


def create(data_dir, folder, version=None):
    store = RolloutStore(data_dir)
    try:
        return store.create(folder, KEY, version, 0)
    finally:
        store.close()


def test_versions_only_go_up(data_dir, model):
    assert create(data_dir, model, 4) == 4
    assert create(data_dir, model) == 5
    with pytest.raises(RolloutError, match="version 5: expected more than 5"):
        create(data_dir, model, 5)
    assert sorted(path.name for path in (data_dir / "rollouts").iterdir()) == ["4", "5"]


def test_two_commands_at_once_take_two_numbers_or_one_is_told(data_dir, model, monkeypatch):
    """The second comes when the first has read the last number and is about to write."""
    sign, told = store_module.sign_bundle, []

    def sign_late(*arguments):
        monkeypatch.setattr(store_module, "sign_bundle", sign)
        with pytest.raises(StoreError) as caught:
            create(data_dir, model)
        told.append(str(caught.value))
        return sign(*arguments)

    monkeypatch.setattr(store_module, "sign_bundle", sign_late)
    assert create(data_dir, model) == 1
    assert len(told) == 1 and "another `epic central rollout` is running" in told[0]
    assert store_module.read_archive(data_dir, 1)
    assert create(data_dir, model) == 2


def test_a_folder_that_is_there_is_left_and_its_number_with_it(data_dir, model):
    """As after a kill, or when an older central.sqlite was restored: devices may have that version."""
    kept = data_dir / "rollouts" / "3" / "archive"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of another time")
    with pytest.raises(RolloutError, match="version 3: expected more than 3"):
        create(data_dir, model, 3)
    assert create(data_dir, model) == 4
    assert kept.read_bytes() == b"of another time"


def test_a_rollout_that_cannot_be_entered_leaves_no_folder(data_dir, model):
    with closing(connect(data_dir)) as disk, closing(RolloutStore(data_dir)):
        disk.execute(
            "CREATE TRIGGER f BEFORE INSERT ON rollout BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
        with pytest.raises(StoreError, match="disk is full"):
            create(data_dir, model)
        assert list((data_dir / "rollouts").iterdir()) == []


def test_what_is_no_released_model_is_refused_with_nothing_left(data_dir, model, tmp_path):
    with pytest.raises(RolloutError, match="expected a folder with bundle/ and decoder/"):
        create(data_dir, tmp_path / "none")
    (model / "decoder" / "decoder.json").write_text('{"model_hash": "0123"}')
    with pytest.raises(RolloutError, match="the decoder is of encoder 0123"):
        create(data_dir, model)
    assert not (data_dir / "rollouts").exists()


def test_a_device_that_was_never_offered_a_bundle_cannot_stop_its_rollout(centre, model):
    """Any allowed device could, by a message that it failed."""
    one = centre()
    version = roll_out(one, model, canaries=1)
    assert one.asks(0).version == version
    assert one.tell(7, Report("failed", version, "because")) == [ReportAck(version)], "heard, so that it ends"
    assert one.tell(7, Report("declined", version)) == [ReportAck(version)]
    one.tell(7, Report("running", version))
    assert set(one.stored().devices) <= {(1, 0)} and one.stored().stage == "canary"
    assert '"update_ignored"' in one.log_path.read_text()
    one.tell(0, Report("failed", version, "arena too small"))
    wait_until(lambda: one.stored().stage == "stopped", what="the canary's own failure stops it")


def other_survey(**changes):
    return Acquisition.from_dict({**SURVEY.to_dict(), **changes})


def test_a_model_for_another_survey_is_refused_before_it_is_signed(tmp_path):
    ours = make_release(tmp_path / "ours", "ours", acquisition=SURVEY.to_dict())
    models = [ModelSection(bundle=ours, decoder=tmp_path / "ours")]
    six = other_survey(device_receivers=Acquisition.split_evenly(70, 6))
    check_release(make_model(tmp_path / "same", acquisition=SURVEY.to_dict()), models)
    with pytest.raises(RolloutError, match="another survey: device_receivers differ"):
        check_release(make_model(tmp_path / "six", acquisition=six.to_dict()), models)


def test_a_device_that_records_another_survey_is_passed_over(centre, model):
    one = centre()
    one.models[OTHER_HASH] = FakeDecoder()
    one.models[OTHER_HASH].acquisition = other_survey(n_time=500)
    version = roll_out(one, model, canaries=1)
    _, *offers = one.tell(3, Report("running", 0), OTHER_HASH)
    assert offers == []
    one.wait_for_state(3, "declined")
    assert one.kept(3).reason == "records another survey: n_time differ"
    one.tell(3, Report("failed", version, "because"), OTHER_HASH)
    assert one.asks(0).version == version, "it was no canary, and cannot stop what it was never offered"


@pytest.mark.parametrize(("recorded", "state"), [(0, "failed"), (5, "running")])
def test_a_canary_that_rejects_its_recordings_stops_the_rollout(centre, model, recorded, state):
    one = centre()
    version = roll_out(one, model, canaries=1)
    new_hash = load_bundle(model / "bundle").model_hash
    one.asks(0)
    one.tell(0, Report("running", version), new_hash)
    record = packet.Record(packet.HEALTH, 0, 1, 1, 1, model_hash=new_hash)
    health = Health(60, 1, 0, 0, 0, recorded + 1, rejected=2, rejection="expected a gather (5, 1000, 70)")
    one.rollouts.check_health(record, health)
    one.wait_for_state(0, state)
    if state == "failed":
        wait_until(lambda: one.stored().stage == "stopped", what="the stop")
        assert "rejects its recordings: expected a gather" in one.stored().reason
        assert one.asks(1) is None
    else:
        assert one.stored().stage == "canary"


def test_a_second_rollout_waits_for_the_first_or_replaces_it(centre, model):
    one = centre()
    roll_out(one, model, canaries=1)
    with closing(RolloutStore(one.data_dir)) as store:
        with pytest.raises(RolloutError, match="version 1 .* is still in progress.*--replace"):
            check_none_running(store)
        store.set_stage(1, "stopped")
        check_none_running(store)


def test_a_rollout_to_all_is_in_progress_until_devices_have_taken_it(data_dir, model):
    """Another command would replace it without a word, before its first device has asked."""
    create(data_dir, model)
    with closing(RolloutStore(data_dir)) as store:
        store.set_stage(1, "all")
        for state in (None, "offered", "downloading"):
            store.keep_states(1, {(1, 0): DeviceState(state, "", 0, 1)} if state else {})
            with pytest.raises(RolloutError, match="version 1 .* is still in progress.*--replace"):
                check_none_running(store)
        store.keep_states(1, {(1, 0): DeviceState("running", "", 5, 1)})
        check_none_running(store)


def test_the_command_replaces_a_rollout_in_progress_only_when_it_is_told_to(
    data_dir, model, tmp_path, capsys
):
    secret, config = tmp_path / "signing.secret", tmp_path / "central.toml"
    secret.write_text(bytes(KEY).hex())
    secret.chmod(0o600)
    config.write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "{data_dir}"\n'
        f'[[model]]\nbundle = "{model}/bundle"\ndecoder = "{model}/decoder"\n'
    )
    command = ["central", "rollout", str(model), "--config", str(config), "--key", str(secret)]
    assert epic.main(command) == 0
    assert epic.main(command) == 2
    assert "is still in progress" in capsys.readouterr().err
    assert epic.main([*command, "--replace"]) == 0
    with closing(RolloutStore(data_dir)) as store:
        assert [(one.version, one.stage) for one in store.rollouts()] == [(2, "canary"), (1, "superseded")]
