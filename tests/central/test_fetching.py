"""Recordings on request, between a centre and devices that speak the protocol: no process and no socket."""

import itertools
import json
import sqlite3
from contextlib import closing

import cbor2
import numpy as np
import pytest
from fake_decoder import SURVEY
from fetch_rig import T_US, FetchRig, put_event, samples_of

from central.config import FetchSection
from central.recordings.gathers import assemble, has_recording, read_recording
from central.recordings.given import keep_given
from central.recordings.store import (
    ABSENT,
    ASKED,
    COMING,
    FAILED,
    KEPT,
    RecordingError,
    RecordingStore,
)
from central.storage.database import FILE_NAME, StoreError
from firmware_py.protocol.recording_codec import encode_part
from firmware_py.protocol.recording_messages import Fetch, NoRecording, Part, Piece, Wait


@pytest.fixture
def rig(data_dir):
    put_event(data_dir, 7)
    with FetchRig(data_dir) as made:
        yield made


def states(rig):
    return {request.device: request.state for request in rig.store.requests()}


def begin(rig, turns=0):
    """Ask device 0 for event 7, and let it take ``turns`` once it has coded its part; return its side."""
    side = rig.devices[0]
    rig.store.ask(7, None, [0])
    rig.write()
    rig.turn(side, hello=True)
    rig.settle(side)
    for _ in range(turns):
        rig.turn(side)
    return side


def damage_map(rig, event):
    with closing(sqlite3.connect(rig.data_dir / FILE_NAME)) as database, database:
        database.execute("UPDATE map SET checksum = checksum + 1 WHERE event = ?", (event,))


def logged(rig, message):
    lines = map(json.loads, (rig.data_dir / "fetch.jsonl").read_text().splitlines())
    return [line for line in lines if line["message"] == message]


def count_pieces(rig):
    with closing(sqlite3.connect(rig.data_dir / FILE_NAME)) as database:
        return database.execute("SELECT count(*) FROM recording_piece").fetchone()[0]


def test_the_recordings_of_an_event_come_back_bit_for_bit(rig):
    rig.store.ask(7, None)
    rig.run()
    assert set(states(rig).values()) == {KEPT}
    gather = assemble(rig.data_dir, 7)
    expected = np.concatenate([samples_of(7, device) for device in range(5)], axis=2)
    np.testing.assert_array_equal(gather.samples, expected)
    assert gather.live.all()
    assert gather.provenance["missing_devices"] == []
    for part, request in zip(gather.provenance["parts"], rig.store.requests(), strict=True):
        assert part["sha256"] == request.sha256.hex()
        assert (part["misfit_ppm"], part["samples"]) == (0, "float32")
        assert part["wire_bytes"] > part["part_bytes"] > 1000
    assert sum(request.wire_bytes for request in rig.store.requests()) == rig.sent_bytes


def test_the_recording_is_named_by_event_and_sample_time(rig):
    rig.store.ask(7, None, [2])
    rig.run()
    assert rig.devices[2].found == [(7, T_US + 7)]
    assert not rig.devices[1].found, "nobody else was asked"


def test_one_recording_is_fetched_at_a_time_and_the_next_follows_without_a_hello(rig):
    put_event(rig.data_dir, 8)
    rig.store.ask(7, None, [0])
    rig.store.ask(8, None, [0])
    rig.write()
    rig.turn(rig.devices[0], hello=True)
    rig.run(hello_every=10**9)
    assert [(r.event, r.state) for r in rig.store.requests()] == [(7, KEPT), (8, KEPT)]


def test_latents_go_first(rig):
    side = begin(rig)
    side.latents_waiting = True
    assert not rig.turn(side)
    rig.now_s += 100.0
    assert not rig.turn(side), "however long it takes"
    side.latents_waiting = False
    assert rig.turn(side)
    assert isinstance(rig.messages[-2][1], Part)


def test_a_device_that_has_it_no_longer_says_so_and_the_rest_is_used_with_a_mask(rig):
    rig.devices[3].removed.add(7)
    rig.store.ask(7, None)
    rig.run()
    (absent,) = (r for r in rig.store.requests() if r.device == 3)
    assert (absent.state, absent.reason) == (ABSENT, "event 7: not kept any more")
    gather = assemble(rig.data_dir, 7)
    receivers = list(SURVEY.device_receivers[3])
    assert np.isnan(gather.samples[:, :, receivers]).all()
    assert gather.live.sum() == SURVEY.n_receivers - len(receivers)
    assert not gather.live[receivers].any()
    assert gather.provenance["missing_devices"] == [3]


def test_what_was_absent_can_be_asked_for_again_and_what_is_kept_stays(rig):
    rig.devices[3].removed.add(7)
    rig.store.ask(7, None)
    rig.run()
    kept = [r for r in rig.store.requests() if r.state == KEPT]
    rig.devices[3].removed.clear()
    rig.store.ask(7, None, misfit_ppm=1000)
    assert states(rig)[3] == ASKED
    rig.run()
    assert set(states(rig).values()) == {KEPT}
    assert [r for r in rig.store.requests() if r.device != 3] == kept


def test_a_part_that_vanishes_on_its_way_leaves_nothing(rig):
    """The device's disk is short of room, and it restarts."""
    side = begin(rig, turns=3)
    rig.write()
    assert states(rig) == {0: COMING}
    side.removed.add(7)
    side.restart()
    rig.age_contacts()
    rig.turn(side, hello=True)
    rig.run(hello_every=1)
    assert states(rig) == {0: ABSENT}
    assert count_pieces(rig) == 0


def test_a_lossy_recording_states_its_misfit(rig):
    rig.store.ask(7, None, [1], misfit_ppm=10_000)
    whole = len(encode_part(samples_of(7, 1) + np.float32(0.3), SURVEY.device_receivers[1]))
    rig.devices[1]._find = None
    rig.devices[1].sender._find = lambda event, time_us: samples_of(7, 1) + np.float32(0.3)
    rig.run()
    (part,) = assemble(rig.data_dir, 7).provenance["parts"]
    assert 0 < part["misfit_ppm"] <= 10_000
    assert part["part_bytes"] < whole / 3


def test_half_a_part_is_never_used(rig):
    begin(rig, turns=4)
    rig.write()
    (request,) = rig.store.requests()
    assert 0 < request.stored_bytes < request.part_bytes
    with pytest.raises(RecordingError, match=r"no recording is kept \(device 0 coming\); ask for it with"):
        assemble(rig.data_dir, 7)


def test_a_restart_of_the_centre_goes_on_where_the_disk_ends(rig):
    side = begin(rig, turns=3)
    rig.write()
    (request,) = rig.store.requests()
    rig.turn(side)
    # Killed: the last piece was in memory alone.
    rig.start_centre()
    rig.run()
    assert states(rig) == {0: KEPT}
    offsets = [m.offset for device, m in rig.messages if isinstance(m, Piece)]
    assert request.stored_bytes in offsets
    assert min(offsets[4:]) >= request.stored_bytes, "nothing that was on the disk is sent again"


@pytest.mark.parametrize("killed", [True, False], ids=["a kill", "a full disk"])
def test_a_part_that_arrived_is_verified_though_a_pass_ended_before(rig, killed, monkeypatch):
    """The last piece is on the disk, its verification is not; the device says no more."""
    with monkeypatch.context() as failing:

        def fail(self, request):
            raise StoreError("disk full")

        failing.setattr(RecordingStore, "finish", fail)
        side = begin(rig)
        with pytest.raises(StoreError):
            while rig.turn(side):
                rig.write()
    assert states(rig) == {0: COMING}
    if killed:
        rig.start_centre()
    for _ in range(2):
        rig.write()
    assert states(rig) == {0: KEPT}


def test_a_restart_of_the_device_goes_on_where_the_centre_is(rig):
    side = begin(rig, turns=5)
    rig.write()
    (request,) = rig.store.requests()
    side.restart()
    before = len(rig.messages)
    # Within the minute in which the centre takes the device to be at work nothing is asked.
    assert rig.hear(side, side.hello()) == []
    rig.age_contacts()
    rig.run(hello_every=1)
    assert states(rig) == {0: KEPT}
    assert min(m.offset for _, m in rig.messages[before:] if isinstance(m, Piece)) == request.stored_bytes


def test_a_part_that_is_coded_anew_replaces_what_has_come_of_the_old(rig):
    """An update of the device in the middle of a transfer."""
    side = begin(rig, turns=3)
    rig.write()
    side.restart()
    other = samples_of(7, 0) + 1
    side.sender._find = lambda event, time_us: other
    rig.age_contacts()
    rig.run(hello_every=1)
    assert states(rig) == {0: KEPT}
    receivers = list(SURVEY.device_receivers[0])
    np.testing.assert_array_equal(assemble(rig.data_dir, 7).samples[:, :, receivers], other)


def test_a_part_of_another_survey_fails_with_a_reason_and_is_deleted(rig):
    side = rig.devices[0]
    side.sender._find = lambda event, time_us: np.zeros((2, 10, 14), np.float32)
    rig.store.ask(7, None, [0])
    rig.run()
    (request,) = rig.store.requests()
    assert request.state == FAILED
    assert "expected samples (5, 1000, 14) of receivers 0 to 69, got (2, 10, 14)" in request.reason
    assert request.stored_bytes == 0


def test_the_budget_of_a_day_holds_and_the_rest_follows_the_next_day(data_dir):
    put_event(data_dir, 7)
    with FetchRig(data_dir, FetchSection(bytes_per_day=20_000), devices=[0]) as rig:
        rig.store.ask(7, None, [0])
        rig.run(passes=300)
        (request,) = rig.store.requests()
        assert request.state == COMING
        assert 20_000 <= request.wire_bytes < 20_000 + 2 * 4200
        assert any(isinstance(m, Wait) and m.seconds > 1 for _, m in rig.messages)
        # Another centre process, the same day: the budget is on the disk.
        rig.start_centre()
        before = rig.sent_bytes
        rig.run(passes=100)
        assert rig.sent_bytes - before < 1000, "descriptions alone"
        for _ in range(10):
            rig.clock_s += 86_400
            rig.now_s += 3600
            rig.fetching._transfers.get((1, 0), {}).get(7) and rig.run(passes=300, hello_every=1)
        assert states(rig) == {0: KEPT}


@pytest.mark.parametrize(
    ("hours", "hour", "open_"),
    [((20, 6), 21, True), ((20, 6), 5, True), ((20, 6), 12, False), ((8, 10), 9, True), ((8, 10), 10, False)],
)
def test_only_at_certain_hours(data_dir, hours, hour, open_):
    put_event(data_dir, 7)
    with FetchRig(data_dir, FetchSection(hours_utc=hours), devices=[0]) as rig:
        rig.clock_s = 86_400 * 19_000 + 3600 * hour
        rig.store.ask(7, None, [0])
        rig.run(passes=200)
        assert states(rig) == {0: KEPT if open_ else ASKED}
        if not open_:
            rig.clock_s = 86_400 * 19_001 + 3600 * hours[0]
            rig.run()
            assert states(rig) == {0: KEPT}


def test_the_policy_asks_for_flagged_events_and_every_nth_and_for_none_of_before(data_dir):
    put_event(data_dir, 10, flags=("strange",))
    with FetchRig(data_dir, FetchSection(flagged=True, every=5, misfit_ppm=100)) as rig:
        rig.write()
        for event, flags in ((11, ()), (12, ("strange",)), (15, ())):
            put_event(data_dir, event, flags)
        rig.write()
        asked = {(r.event, r.asked_by, r.misfit_ppm) for r in rig.store.requests()}
        assert asked == {(12, "flagged", 100), (15, "every n-th", 100)}
        assert len(rig.store.requests()) == 10
        put_event(data_dir, 20)
        rig.start_centre()
        rig.write()
        assert {r.event for r in rig.store.requests()} == {12, 15, 20}, "a restart overlooks none"


def test_a_part_whose_map_is_damaged_fails_and_holds_up_no_other(rig):
    put_event(rig.data_dir, 8)
    begin(rig, turns=3)
    damage_map(rig, 7)
    rig.store.ask(8, None, [1])
    rig.run()
    failed, kept = rig.store.requests()
    assert (failed.event, failed.state, failed.stored_bytes) == (7, FAILED, 0)
    assert "event 7, revision 1: damaged on the disk" in failed.reason
    assert (kept.event, kept.state) == (8, KEPT)


def overflow(*_):
    raise OverflowError("int too large to convert to float")


@pytest.mark.parametrize("decoder_holds", [True, False])
def test_a_part_that_the_decoder_stumbles_over_fails_and_holds_up_no_other(rig, monkeypatch, decoder_holds):
    put_event(rig.data_dir, 8)
    if decoder_holds:
        header, packed = cbor2.loads(encode_part(np.ones((5, 1000, 14), np.float32), tuple(range(14))))
        crafted = cbor2.dumps([{**header, "step": 10**400}, packed])
        monkeypatch.setattr("firmware_py.runtime.recording_sender.encode_part", lambda *_: crafted)
    else:
        monkeypatch.setattr("central.recordings.store.decode_part", overflow)
    begin(rig, turns=3)
    rig.run()
    monkeypatch.undo()
    rig.store.ask(8, None, [1])
    rig.run()
    failed, kept = rig.store.requests()
    assert (failed.event, failed.state, failed.stored_bytes) == (7, FAILED, 0)
    assert ("no coded part" if decoder_holds else "int too large") in failed.reason
    assert (kept.event, kept.state) == (8, KEPT)


def test_the_policy_leaves_out_an_event_whose_map_is_damaged(data_dir):
    with FetchRig(data_dir, FetchSection(every=1)) as rig:
        rig.write()
        for event in (3, 4, 5):
            put_event(data_dir, event)
        damage_map(rig, 4)
        rig.write()
        assert {r.event for r in rig.store.requests()} == {3, 5}
        (line,) = logged(rig, "recordings_not_asked")
        assert (line["survey"], line["event"]) == (1, 4) and "damaged on the disk" in line["reason"]
        put_event(data_dir, 6)
        rig.write()
        assert {r.event for r in rig.store.requests()} == {3, 5, 6}
        assert len(logged(rig, "recordings_not_asked")) == 1


def test_a_dropped_request_ends_the_transfer(rig):
    side = begin(rig, turns=3)
    rig.write()
    assert rig.store.drop(7, 1) == 1
    rig.write()
    rig.turn(side)
    assert not rig.turn(side)
    assert count_pieces(rig) == 0


def test_a_full_disk_stops_nothing_but_the_fetching(rig, monkeypatch):
    side = begin(rig, turns=3)

    def fail(*_):
        raise StoreError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(RecordingStore, "advance", fail)
        with pytest.raises(StoreError):
            rig.fetching.keep(rig.store)
        rig.turn(side)
    rig.run()
    assert states(rig) == {0: KEPT}
    np.testing.assert_array_equal(assemble(rig.data_dir, 7).samples[:, :, :14], samples_of(7, 0))


def test_more_than_fits_in_memory_waits_for_the_disk(rig, monkeypatch):
    monkeypatch.setattr("central.recordings.fetching.MAX_WAITING_BYTES", 5000)
    begin(rig, turns=3)
    assert rig.messages[-1][1] == Wait(1)
    rig.run()
    assert states(rig) == {0: KEPT}


def test_who_asks_is_told_what_is_wrong(rig):
    with pytest.raises(RecordingError, match="expected devices 0 to 4 of survey 1, got 5"):
        rig.store.ask(7, None, [5])
    with pytest.raises(StoreError, match="event 8: not in the store"):
        rig.store.ask(8, None)
    assert rig.store.requests() == []


def test_a_device_whose_latent_never_came_is_asked_by_number_alone(data_dir):
    put_event(data_dir, 7, devices=[0, 1])
    with FetchRig(data_dir, devices=[4]) as rig:
        rig.store.ask(7, None, [4])
        rig.run()
        assert rig.devices[4].found == [(7, 0)]
        assert states(rig) == {4: KEPT}


def test_damage_on_the_disk_is_found_before_the_gather_is_used(rig):
    rig.store.ask(7, None, [0])
    rig.run()
    with closing(sqlite3.connect(rig.data_dir / FILE_NAME)) as database:
        database.execute("UPDATE recording_piece SET data = zeroblob(length(data)) WHERE start > 0")
        database.commit()
    with pytest.raises(RecordingError, match="SHA-256 is not the one that the device gave"):
        assemble(rig.data_dir, 7)


def test_the_log_says_what_became_of_each_part(rig):
    rig.store.ask(7, None, [0])
    rig.run()
    (line,) = logged(rig, "recording")
    assert (line["event"], line["device"], line["state"]) == (7, 0, KEPT)


def test_what_is_no_message_gets_no_answer(rig):
    side = rig.devices[0]
    record = side.hello()
    record.type, record.payload = 7, b"\xff"
    assert rig.fetching.handle(record, 40) == []


def test_answers_go_to_the_device_and_event_that_asked(rig):
    rig.store.ask(7, None)
    rig.write()
    for side in rig.devices.values():
        (answer,) = rig.hear(side, side.hello())
        assert (answer.device, answer.boot, answer.event) == (side.device, side.boot, 7)
    assert not any(isinstance(m, NoRecording | Fetch) for m in itertools.chain(rig.messages))


def test_the_page_shows_what_was_fetched_unless_an_operator_gave_the_recording(rig):
    assert not has_recording(rig.data_dir, 1, 7)
    assert read_recording(rig.data_dir, 1, 7) is None
    rig.store.ask(7, None, [0])
    assert not has_recording(rig.data_dir, 1, 7), "asked for is not there"
    rig.run()
    assert has_recording(rig.data_dir, 1, 7)
    fetched = read_recording(rig.data_dir, 1, 7)
    assert np.array_equal(fetched, assemble(rig.data_dir, 7).samples, equal_nan=True)
    assert np.isnan(fetched).any(), "one device of several was asked"
    given = np.zeros_like(fetched)
    keep_given(rig.data_dir, 1, 7, given)
    assert np.array_equal(read_recording(rig.data_dir, 1, 7), given)
