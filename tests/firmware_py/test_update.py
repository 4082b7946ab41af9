"""The device's side of an update, message by message, on a clock of the test's own."""

import os
import signal
from itertools import pairwise

import numpy as np
import pytest
from nacl.signing import SigningKey
from releases import KEY, FakeRollout, answer_to, make_offer, make_release, sign
from tiny import ENCODER

from firmware_py.inference.bundle import BundleError, load_bundle
from firmware_py.inference.self_test import VECTORS, encode_vectors, self_test
from firmware_py.protocol import packet
from firmware_py.protocol.repeater import RETRY_MAX_S
from firmware_py.protocol.update_messages import (
    Chunk,
    ChunkRequest,
    NotAvailable,
    Report,
    ReportAck,
    decode_message,
    encode_message,
)
from firmware_py.runtime.factory import check_same_survey
from firmware_py.updates.slots import MAX_TRIAL_STARTS, Slots
from firmware_py.updates.updater import REPORT_S, UpdatePolicy, Updater

HEADER = packet.Record(packet.UPDATE, 3, 1, 9, 0, model_hash=b"12345678")


class Device:
    """An updater between slots and the test; ``turn`` is one turn of the node's loop."""

    def __init__(self, folder, board="", trial_s=600.0):
        self.slots = Slots(folder / "slots", folder / "seed")
        self.policy = UpdatePolicy(KEY.verify_key, board, 100, trial_s)
        self.now_s = 1000.0
        self.restarts = 0
        self.log = []
        self.start()

    def start(self):
        """As after a restart of the node's loop, or of the process."""
        self.slots.start()
        self.updater = Updater(
            self.slots,
            self.policy,
            HEADER,
            self_test,
            lambda: setattr(self, "restarts", self.restarts + 1),
            lambda what, **values: self.log.append((what, values)),
        )

    def poll(self, after_s=0.0):
        self.now_s += after_s
        record = self.updater.poll(self.now_s)
        return record and decode_message(record.payload)

    def handle(self, *messages):
        for message in messages:
            self.updater.handle(answer_to(HEADER, message), self.now_s)

    def talk(self, centre, turns=100):
        """Turns with ``centre`` until the device is silent or restarts."""
        for _ in range(turns):
            record = self.updater.poll(self.now_s)
            if record is None:
                return
            for answer in centre.answers(record):
                self.updater.handle(answer, self.now_s)


@pytest.fixture
def device(tmp_path):
    """Makes the device; its slots are closed after the test."""
    make_release(tmp_path / "seed", "installed", ENCODER)
    made = []

    def make(**options):
        made.append(Device(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.slots.close()


@pytest.fixture
def new(tmp_path):
    return make_release(tmp_path / "new")


def test_a_device_says_what_it_runs_until_it_is_heard(device):
    one = device()
    assert one.poll() == Report("running", 0)
    assert one.poll(1.9) is None
    assert one.poll(0.2) == Report("running", 0)
    one.handle(ReportAck(5))
    assert one.poll(100) == Report("running", 0), "that was an answer to something else"
    one.handle(ReportAck(0))
    assert one.poll(REPORT_S - 1) is None
    assert one.updater.status() == {"version": 0, "state": "idle"}
    assert one.poll(1) == Report("running", 0), "now and then, as the answer may bring an offer"


def test_repeated_questions_come_ever_less_often(device):
    one = device()
    said_at_s = [one.now_s for _ in range(400) if one.poll(1.0)]
    waits_s = [later - earlier for earlier, later in pairwise(said_at_s)]
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] == RETRY_MAX_S


def test_an_update_from_offer_to_confirmation(device, new):
    one = device()
    centre = FakeRollout(sign(new, 7), 7)
    one.talk(centre)
    assert one.restarts == 1
    assert one.poll(100) is None, "nothing more from a node that is to end"
    assert load_bundle(one.slots.current).name == "new"
    assert sum(want.length for want in centre.wanted) == len(centre.archive)
    assert one.updater.status()["state"] == "trial"
    one.start()
    one.talk(centre)
    assert not one.slots.on_trial
    assert centre.reports == [Report("running", 0), Report("running", 7)]
    assert not list(one.slots.incoming.iterdir())


def test_records_are_numbered_and_carry_the_device(device):
    one = device()
    numbers = []
    for _ in range(3):
        record = one.updater.poll(one.now_s)
        numbers.append(record.sequence)
        one.now_s += 100
        assert (record.type, record.device, record.survey, record.boot) == (packet.UPDATE, 3, 1, 9)
        assert record.model_hash == HEADER.model_hash
    assert numbers == [1, 2, 3]


def begin(one, archive, version=7, **changes):
    one.poll()
    one.handle(ReportAck(0), make_offer(archive, version, **changes))


def test_a_lost_chunk_is_asked_for_again_and_a_doubled_one_taken_once(device, new):
    one = device()
    archive = sign(new, 7)
    begin(one, archive)
    first = one.poll()
    assert (first.offset, first.length) == (0, 100)
    assert one.poll(1.0) is None
    assert one.poll(1.1) == first
    chunk = Chunk(first.sha256, 0, archive[:100])
    one.handle(chunk, chunk, Chunk(first.sha256, 300, archive[300:400]), Chunk(bytes(32), 100, bytes(100)))
    assert one.poll().offset == 100
    assert one.updater.status() == {
        "version": 0,
        "state": "downloading",
        "offset": 100,
        "bytes": len(archive),
    }


def test_after_a_restart_the_download_goes_on_at_the_byte(device, new):
    one = device()
    centre = FakeRollout(sign(new, 7), 7)
    one.talk(centre, turns=5)
    assert one.restarts == 0
    one.start()
    before = len(centre.wanted)
    one.talk(centre)
    assert centre.wanted[before].offset == 100 * before
    assert load_bundle(one.slots.current).name == "new"


def test_what_a_power_cut_damaged_is_fetched_once_more(device, new):
    one = device()
    centre = FakeRollout(sign(new, 7), 7)
    one.talk(centre, turns=5)
    (part,) = one.slots.incoming.glob("*.part")
    part.write_bytes(bytes(part.stat().st_size))
    one.start()
    one.talk(centre)
    assert ("update_damaged", 7) in [(what, values.get("version")) for what, values in one.log]
    assert one.restarts == 1
    assert load_bundle(one.slots.current).name == "new"


def only_failure(one, centre):
    one.talk(centre)
    assert one.restarts == 0
    assert load_bundle(one.slots.current).name == "installed"
    assert not list(one.slots.incoming.glob("*.part"))
    (report,) = [report for report in centre.reports if report.state != "running"]
    return report


def test_a_bundle_signed_by_another_key_is_refused_before_a_byte_of_it(device, new):
    centre = FakeRollout(sign(new, 7, SigningKey.generate()), 7)
    report = only_failure(device(), centre)
    assert (report.state, report.version) == ("failed", 7)
    assert "the signature is not of the key that this device trusts" in report.reason
    assert centre.wanted == []


def test_a_bundle_that_was_changed_after_signing_is_refused(device, new):
    archive = bytearray(sign(new, 7))
    archive[-1] ^= 1
    centre = FakeRollout(bytes(archive), 7)
    report = only_failure(device(), centre)
    assert report.state == "failed"
    assert "was changed after signing" in report.reason


def test_an_archive_that_is_not_the_offered_one_is_refused(device, new):
    centre = FakeRollout(sign(new, 7), 7)
    centre.archive = centre.archive[:-1] + bytes([centre.archive[-1] ^ 1])
    assert "of what arrived is not" in only_failure(device(), centre).reason


@pytest.mark.parametrize("changes", [{"version": 8}, {"archive_bytes": 1 << 30}])
def test_an_offer_that_says_other_than_what_was_signed_is_refused(device, new, changes):
    one = device()
    begin(one, sign(new, 7), **{"version": 7, **changes})
    report = one.poll()
    assert report.state == "failed"
    assert "what was signed says (7," in report.reason


def test_a_downgrade_is_refused(device, new, tmp_path):
    one = device()
    one.talk(FakeRollout(sign(new, 7), 7))
    one.start()
    one.handle(ReportAck(7))
    one.poll()
    one.handle(ReportAck(7), make_offer(sign(make_release(tmp_path / "old", "old"), 6), 6))
    report = one.poll()
    assert (report.state, report.version) == ("failed", 6)
    assert report.reason == "version 6 is a downgrade: 7 was in use here; release a higher one"
    assert load_bundle(one.slots.current).name == "new"


def test_an_update_for_another_board_is_declined(device, new):
    centre = FakeRollout(sign(new, 7, boards=["esp32-s3"]), 7)
    report = only_failure(device(board="raspberry-pi-5"), centre)
    assert (report.state, report.reason) == ("declined", "for esp32-s3, this is raspberry-pi-5")
    assert centre.wanted == []


def test_a_bundle_that_fails_its_self_test_is_never_in_use(device, tmp_path):
    inputs = np.zeros((1, 10, 3, 2), np.int8)
    wrong = encode_vectors(inputs, np.full((1, 1, 8), 127, np.int8))
    one = device()
    centre = FakeRollout(sign(make_release(tmp_path / "bad", files={VECTORS: wrong}), 7), 7)
    assert "golden vectors come out" in only_failure(one, centre).reason
    asked = len(centre.wanted)
    one.start()
    one.talk(centre)
    assert "failed here before (" in centre.reports[-1].reason, "it is not fetched again"
    assert len(centre.wanted) == asked


def test_a_failure_is_told_until_it_is_heard_even_after_a_restart(device, tmp_path):
    one = device()
    centre = FakeRollout(
        sign(make_release(tmp_path / "bad", encoder=b"no model at all"), 7),
        7,
        hears=lambda r: r.state == "running",
    )
    one.talk(centre)
    one.start()
    report = one.poll()
    assert (report.state, report.version) == ("failed", 7)
    one.handle(ReportAck(7))
    assert one.poll() == Report("running", 0)


def test_a_new_bundle_that_is_not_heard_from_is_gone_back_from(device, new):
    one = device(trial_s=60.0)
    centre = FakeRollout(sign(new, 7), 7)
    one.talk(centre)
    one.start()
    deaf = FakeRollout(centre.archive, 7, hears=lambda report: False)
    one.talk(deaf)
    one.poll(59.0)
    assert (one.restarts, one.slots.on_trial) == (1, True)
    assert one.poll(1.0) is None
    assert one.restarts == 2
    assert load_bundle(one.slots.current).name == "installed"
    one.start()
    one.talk(centre)
    assert centre.reports[1:3] == [
        Report("failed", 7, "the centre did not answer within 60 s of the start"),
        Report("running", 0),
    ]


def test_an_offer_of_what_runs_here_is_answered_with_a_report(device):
    one = device()
    begin(one, b"EPIC-UPD\n" + bytes(68), version=0)
    assert one.poll() == Report("running", 0)


def test_an_update_that_is_withdrawn_is_dropped(device, new):
    one = device()
    begin(one, sign(new, 7))
    want = one.poll()
    assert isinstance(want, ChunkRequest)
    one.handle(NotAvailable(bytes(32)))
    assert one.updater.status()["state"] == "downloading"
    one.handle(NotAvailable(want.sha256))
    assert one.poll(100) is None
    assert not list(one.slots.incoming.glob("*.part"))


def test_no_room_for_the_update_is_told(device, new, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    one = device()
    monkeypatch.setattr("firmware_py.updates.download.os.fsync", full)
    report = only_failure(one, FakeRollout(sign(new, 7), 7))
    assert report.reason == "no room for the update ([Errno 28] No space left on device)"


def killed_in_the_test(one, centre):
    child = os.fork()
    if not child:
        try:
            one.updater._test = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            one.talk(centre)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    one.slots.close()


def test_a_power_cut_in_the_test_of_an_update_is_no_failure_of_it(device, new):
    for _ in range(MAX_TRIAL_STARTS - 1):
        killed_in_the_test(device(), FakeRollout(sign(new, 7), 7))
    one, centre = device(), FakeRollout(sign(new, 7), 7)
    one.talk(centre)
    assert load_bundle(one.slots.current).name == "new"
    assert one.slots.state.failure is None and one.slots.state.tried is None


def test_an_update_whose_test_ends_the_device_is_told_at_the_next_start_and_not_tried_again(device, new):
    """As a runtime that crashes does, one that takes all memory, or one that hangs until the watchdog kills it."""
    centre = FakeRollout(sign(new, 7), 7)
    for _ in range(MAX_TRIAL_STARTS):
        killed_in_the_test(device(), centre)
    assert not centre.reports
    again = device()
    again.talk(centre)
    assert again.restarts == 0
    assert centre.reports[0] == Report(
        "failed", 7, "the device ended 3 times while it unpacked and tested it"
    )
    # Offered again, it is refused: the test, which would pass here, is not tried.
    assert {report.state for report in centre.reports[1:]} == {"running", "failed"}
    assert centre.wanted == []
    assert load_bundle(again.slots.current).name == "installed"


def test_what_fails_for_want_of_room_is_no_failure_of_the_update(device, new, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    one = device()
    with monkeypatch.context() as patch:
        patch.setattr("firmware_py.updates.slots.Slots._place", full)
        report = only_failure(one, FakeRollout(sign(new, 7), 7))
    assert report.reason.startswith("no room for the update")
    assert one.slots.refusal(7) is None, "it may be tried again"
    assert not one.slots.state.untold
    one.start()
    one.talk(FakeRollout(sign(new, 7), 7))
    assert load_bundle(one.slots.current).name == "new"


def test_what_is_no_message_is_an_error_for_the_node_to_log(device):
    one = device()
    record = packet.Record(packet.UPDATE, 3, 1, 9, 1, payload=encode_message(ReportAck(1))[:-1])
    with pytest.raises(packet.PacketError):
        one.updater.handle(record, one.now_s)
    one.updater.handle(packet.Record(packet.HEALTH, 3, 1, 9, 1, payload=b"not for us"), one.now_s)


def test_a_bundle_for_another_survey_is_refused(tmp_path):
    ours = load_bundle(make_release(tmp_path / "ours", "ours", ENCODER))
    survey = {**ours.manifest["acquisition"], "velocity_max_mps": 6000.0}
    check_same_survey(ours, load_bundle(make_release(tmp_path / "same", acquisition=survey)))
    survey["device_receivers"] = [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(BundleError, match="another survey: device_receivers differ"):
        check_same_survey(ours, load_bundle(make_release(tmp_path / "other", acquisition=survey)))
