"""The device's loop against a centre that answers, refuses, is silent, or dies."""

import time

import numpy as np
import pytest
from fake_centre import FakeCentre
from tiny import ENCODER, bundle_fields
from waiting import wait_until

from firmware_py.inference.bundle import BundleError, create_bundle
from firmware_py.inference.encoder import Encoder
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Rate, pack
from firmware_py.runtime.config import SourceSection
from firmware_py.runtime.factory import select_receivers
from firmware_py.runtime.node import Node
from firmware_py.storage.spool import SpoolError


def test_every_event_arrives_once_with_its_latent(config, bundle, gathers, entries):
    with FakeCentre() as centre:
        statistics = Node(config(centre.endpoint)).run()
    assert [(r.type, r.device, r.event, r.sequence) for r in centre.records] == [
        (packet.LATENT, 1, k, k) for k in (1, 2, 3, 4)
    ]
    encoder = Encoder(bundle)
    for record, gather in zip(centre.records, gathers, strict=True):
        assert record.payload == encoder.encode_recording(gather[:, :, 3:]).tobytes()
        assert record.model_hash == bundle.model_hash
    assert (statistics["recorded"], statistics["acknowledged"], statistics["waiting"]) == (4, 4, 0)
    assert len(entries("acknowledged")) == 4
    assert entries("statistics")[-1]["bytes_sent"] == statistics["bytes_sent"]


def test_of_four_bits_a_value_half_the_bytes_are_sent(config, gathers, bundle):
    with FakeCentre() as centre:
        Node(config(centre.endpoint, bits=4)).run()
    encoder = Encoder(bundle)
    for record, gather in zip(centre.records, gathers, strict=True):
        assert record.payload == pack(
            encoder.encode_recording(gather[:, :, 3:]), Rate(bundle.coding.latent, 4)
        )
        assert 2 * len(record.payload) == bundle.output.shape[-1]


def test_a_rate_that_the_model_cannot_changes_nothing_until_a_model_comes_that_can(tmp_path, config, entries):
    create_bundle(tmp_path / "ordered", ENCODER, {**bundle_fields(), "prefixes": [[3, 8]]})
    two = SourceSection("files", (tmp_path / "gathers.npy",), limit=2)
    with FakeCentre() as centre:
        node = Node(config(centre.endpoint, bits=4, source=two))
        node.set_rate(3)
        node.run()
        assert {len(record.payload) for record in centre.records} == {4}
        reasons = {line["reason"] for line in entries("rate_refused")}
        assert reasons == {"set by the centre: expected a latent of 8 or 4 bytes, got 3"}
        node = Node(config(centre.endpoint, bits=4, bundle=tmp_path / "ordered"))
        node.run()
        assert [len(record.payload) for record in centre.records] == [4, 4, 3, 3]
        assert node.rate == Rate(3, 8)


def test_a_lost_acknowledgement_is_made_up_for_by_sending_again(config):
    seen = set()

    def deaf_once(record):
        if record.sequence in seen:
            return packet.acknowledge(record)
        seen.add(record.sequence)
        return None

    with FakeCentre(deaf_once) as centre:
        statistics = Node(config(centre.endpoint)).run()
    assert statistics["waiting"] == 0
    assert {r.sequence for r in centre.records} == {1, 2, 3, 4}
    assert len(centre.records) >= 8


def test_one_acknowledgement_may_name_many(config):
    def only_the_last(record):
        return packet.acknowledge(record, [1, 2, 3]) if record.sequence == 4 else None

    with FakeCentre(only_the_last) as centre:
        assert Node(config(centre.endpoint)).run()["acknowledged"] == 4


def test_an_answer_for_another_device_removes_nothing(config, start, entries):
    def misdirected(record):
        answer = packet.acknowledge(record)
        answer.device = 7
        return answer

    with FakeCentre(misdirected) as centre, start(config(centre.endpoint)) as running:
        wait_until(lambda: entries("ignored"), what="the answer was seen")
    assert running.statistics["acknowledged"] == 0
    assert running.statistics["waiting"] == running.statistics["recorded"]


def test_a_silent_centre_does_not_stop_recording(config, start):
    """More recordings than the window holds, none acknowledged."""
    with (
        FakeCentre(lambda record: None) as centre,
        start(config(centre.endpoint, window=2)) as running,
    ):
        wait_until(lambda: running.node.source.exhausted, what="all recorded")
        wait_until(lambda: centre.records, what="something sent")
    assert (running.statistics["recorded"], running.statistics["waiting"]) == (4, 4)
    assert {record.sequence for record in centre.records} == {1, 2}, "no more than the window is in flight"


def test_no_centre_at_all_then_one_after_a_restart(config, start):
    """The spool outlives the device; its records keep their numbers."""
    with FakeCentre() as centre:
        endpoint = centre.endpoint
    with start(config(endpoint)) as running:
        wait_until(lambda: running.node.source.exhausted, what="all recorded")
    first_boot = running.statistics["boot"]
    assert running.statistics["waiting"] == 4
    with FakeCentre(endpoint=endpoint) as centre:
        statistics = Node(config(endpoint)).run()
    assert statistics["boot"] == first_boot + 1
    assert statistics["recorded"] == 0, "a replay is not replayed again"
    assert [(r.boot, r.sequence, r.event) for r in centre.records] == [
        (first_boot, k, k) for k in (1, 2, 3, 4)
    ]


def test_a_centre_that_restarts_while_records_are_in_flight(config, start):
    first = FakeCentre(lambda record: None)
    with start(config(first.endpoint)) as running:
        wait_until(lambda: len(first.records) >= 4, what="in flight")
        first.close()
        with FakeCentre(endpoint=first.endpoint) as second:
            wait_until(running.finished, what="drained")
    assert {record.sequence for record in second.records} == {1, 2, 3, 4}


def test_a_refused_record_is_set_aside_and_not_sent_again_in_this_run(config, entries):
    def refuse_the_second(record):
        if record.sequence == 2:
            return packet.refuse(record, "this device's encoder is unknown")
        return packet.acknowledge(record)

    with FakeCentre(refuse_the_second) as centre:
        node = Node(config(centre.endpoint))
        statistics = node.run()
    assert (node.refused, node.refusal) == (1, "this device's encoder is unknown")
    assert (statistics["acknowledged"], statistics["refused"], statistics["waiting"]) == (3, 1, 0)
    assert entries("refused")[0]["reason"] == "this device's encoder is unknown"
    assert [record.sequence for record in centre.records].count(2) == 1


def test_a_replay_waits_for_room_in_the_spool(config, start):
    with (
        FakeCentre(lambda record: None) as centre,
        start(config(centre.endpoint, spool_records=3)) as running,
    ):
        wait_until(lambda: len(centre.records) > 3, what="the loop to go round")
    assert (running.statistics["recorded"], running.statistics["dropped"]) == (3, 0)


def test_a_field_device_drops_the_oldest_record_and_thinks_no_more_of_it(tmp_path, config, gathers, start):
    incoming = tmp_path / "in"
    incoming.mkdir()
    folder = SourceSection("folder", path=incoming, poll_s=0.01)
    with (
        FakeCentre(lambda record: None) as centre,
        start(config(centre.endpoint, window=3, source=folder, spool_records=3)) as running,
    ):
        for k, gather in enumerate(gathers, start=1):
            np.save(incoming / f"{k}.npy", gather)
            wait_until(lambda k=k: k in {r.event for r in centre.records}, what=f"event {k}")
    assert (running.statistics["waiting"], running.statistics["dropped"]) == (3, 1)


def test_a_lost_state_folder_never_uses_a_boot_again(tmp_path, config, monkeypatch):
    """Else the centre would take new records for old ones, and acknowledge them unread."""
    with FakeCentre() as centre:
        for _ in range(3):
            before = Node(config(centre.endpoint, state_dir=tmp_path / "a")).run()["boot"]
        clock = time.time() + 60
        monkeypatch.setattr(time, "time", lambda: clock)
        assert Node(config(centre.endpoint, state_dir=tmp_path / "b")).run()["boot"] > before


def test_two_devices_never_share_a_state_folder(config):
    """They would share the position in the replay, and one would leave out what the other recorded."""
    with FakeCentre() as centre:
        Node(config(centre.endpoint)).run()
        with pytest.raises(SpoolError, match=r"belongs to device 1 of survey \d+, this is device 0 of"):
            Node(config(centre.endpoint, device=0))


def test_garbage_from_the_centre_is_noted_and_survived(config, entries):
    answered = []

    def answer(record):
        answered.append(record.sequence)
        ragged = packet.acknowledge(record)
        ragged.payload = b"123"
        return ragged if answered.count(record.sequence) == 1 else packet.acknowledge(record)

    with FakeCentre(answer) as centre:
        assert Node(config(centre.endpoint)).run()["acknowledged"] == 4
    assert "no list of uint32" in entries("ignored")[0]["reason"]


@pytest.mark.parametrize(
    ("receivers", "expected"),
    [((), (3, 4, 5)), ((0, 2), (0, 1, 2)), ((5,), (5,)), ((2, 2), (2,)), ((0, 2, 4), (0, 2, 4))],
)
def test_receivers_of_a_device(config, bundle, receivers, expected):
    assert select_receivers(config("tcp://127.0.0.1:9", receivers=receivers), bundle).receivers == expected


@pytest.mark.parametrize("receivers", [(0, 3), (4, 6), (-1, 1), (4, 5, 6), (2, 2, 3), (5, 3)])
def test_receivers_that_cannot_be(config, bundle, receivers):
    with pytest.raises(BundleError, match=r"\[node\] receivers: expected"):
        select_receivers(config("tcp://127.0.0.1:9", receivers=receivers), bundle)


def test_a_device_the_survey_does_not_have(config, bundle):
    with pytest.raises(BundleError, match="made for devices 0 to 1, this is device 2"):
        select_receivers(config("tcp://127.0.0.1:9", device=2), bundle)


def test_a_recording_of_a_wrong_gain_is_logged_once(config, bundle, gathers, entries, tmp_path):
    """A wrong gain gives a wrong map, and nothing else shows it."""
    full_scale = np.sinh(bundle.companding.c) / bundle.companding.k
    usual = gathers / np.abs(gathers[:, :, :, 3:]).max(axis=(1, 2, 3), keepdims=True) * full_scale
    for number, gather in enumerate([usual[0], usual[1] / 250, usual[2] / 250, usual[3]], start=1):
        np.save(tmp_path / f"shot-{number}.npy", gather.astype(np.float32))
    paths = tuple(tmp_path / f"shot-{number}.npy" for number in range(1, 5))
    with FakeCentre() as centre:
        Node(config(centre.endpoint, source=SourceSection(kind="files", paths=paths))).run()
    (logged,) = entries("unusual_loudness")
    assert logged["event"] == 2 and "correct the gain" in logged["reason"]
    assert [entry["event"] for entry in entries("usual_loudness")] == [4]
