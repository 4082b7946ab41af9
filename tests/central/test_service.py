"""The centre at work: five devices make a map, four make one at the deadline, the fifth a better one."""

import json
import os
import pty
import socket
import threading

import numpy as np
import pytest
from fake_decoder import LATENT, MODEL_HASH, OTHER_HASH, SURVEY, FakeDecoder, latent_record
from waiting import wait_until

from central.config import CentralConfig
from central.gateway.listener import ListenError
from central.ingest.connections import Connections
from central.service import Service
from central.storage.database import StoreError, connect
from central.storage.journal import Journal
from central.storage.map_store import Store
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Rate, pack
from firmware_py.runtime.log import Log

pytestmark = pytest.mark.slow


class Centre:
    """A service on a thread with its store and log at hand."""

    def __init__(self, folder, decoders, deadline_s, pictures):
        central = {
            "listen": "tcp://127.0.0.1:*",
            "data_dir": folder / "data",
            "deadline_s": deadline_s,
            "pictures": pictures,
        }
        config = CentralConfig.model_validate(
            {"central": central, "model": [{"bundle": folder, "decoder": folder}]}
        )
        self.folder = folder / "data"
        self._log_path = folder / "central.jsonl"
        self.service = Service(config, decoders, Log(self._log_path))
        self.endpoint = self.service.receiver.endpoint
        self.error = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            self.service.run()
        except StoreError as error:
            self.error = error

    def stop(self):
        self.service.stop()
        self._thread.join()

    def logged(self, what):
        lines = [json.loads(line) for line in self._log_path.read_text().splitlines()]
        return [line for line in lines if line["message"] == what]

    def maps(self):
        store = Store(self.folder)
        try:
            return {stored.event: stored for stored in store.newest()}
        finally:
            store.close()


@pytest.fixture
def start(tmp_path):
    """Starts a centre on ``tmp_path``; what still runs after the test is stopped."""
    running = []

    def start_centre(decoder=None, model_hash=MODEL_HASH, deadline_s=60.0, pictures=False):
        running.append(Centre(tmp_path, {model_hash: decoder or FakeDecoder()}, deadline_s, pictures))
        return running[-1]

    yield start_centre
    for centre in running:
        centre.stop()


@pytest.fixture
def send(dealers):
    """Five devices' connections to a centre: ``send(centre, records)`` returns when each is acknowledged."""
    open_dealers = {}

    def send_all(centre, *records):
        for record in records:
            key = (centre.endpoint, record.device)
            if key not in open_dealers:
                open_dealers[key] = dealers(centre.endpoint, f"epic-{record.device}".encode())
            open_dealers[key].send(record)
            assert open_dealers[key].answer().type == packet.ACK

    return send_all


def of_devices(*devices, event=1, **fields):
    return [latent_record(device=d, event=event, sequence=event, value=d + 1, **fields) for d in devices]


def columns(stored):
    """What the fake decoder was given: each device's latent, None for an absent one."""
    row = stored.velocity_mps[0, : SURVEY.n_devices]
    return [None if v == 1500 else int(v - 2000) for v in row]


def heard(centre, devices, event=1):
    """The event's newest map if it was drawn from ``devices``."""
    stored = centre.maps().get(event)
    return stored if stored and stored.provenance["devices"] == devices else None


def test_devices_may_send_four_bits_of_each_value_and_others_eight(start, send):
    centre = start()
    records = of_devices(0, 1, 2, 3, 4)
    records[1].payload = pack(np.full(LATENT, 37, np.int8), Rate(LATENT, 4))
    send(centre, *records)
    stored = wait_until(lambda: centre.maps().get(1), what="map")
    assert columns(stored) == [1, 32 + 8, 3, 4, 5]


def test_an_event_unlike_those_of_training_is_flagged(start, send):
    class Wary(FakeDecoder):
        def ood_score(self, latents_int8, present, rates):
            return float(np.abs(latents_int8[present]).mean()), 5.0

    centre = start(Wary())
    send(
        centre,
        *(
            latent_record(device=d, event=e, sequence=e, value=v)
            for e, v in ((1, 3), (2, 9))
            for d in range(5)
        ),
    )
    usual, strange = (wait_until(lambda e=e: centre.maps().get(e), what="map").provenance for e in (1, 2))
    assert usual["unfamiliarity"] == {"score": 3.0, "limit": 5.0} and "flags" not in usual
    assert strange["unfamiliarity"]["score"] == 9.0
    assert strange["flags"][0].startswith("unlike training: the OOD score is 9.0 (limit 5.0)")


def test_a_map_of_devices_without_a_clock_is_dated_by_their_arrival(start, send):
    centre = start()
    send(centre, *(latent_record(device=d, sample_time_us=0) for d in range(5)))
    provenance = wait_until(lambda: centre.maps().get(1), what="map").provenance
    assert provenance["sample_time_us"] == provenance["first_received_us"]


def test_five_devices_make_one_map_with_where_it_comes_from(start, send):
    centre = start()
    records = of_devices(3, 1, 4, 0, 2)
    send(centre, *records)
    stored = wait_until(lambda: centre.maps().get(1), what="map")
    assert columns(stored) == [1, 2, 3, 4, 5]
    assert (stored.revision, stored.partial, stored.survey) == (1, False, 1)
    provenance = stored.provenance
    assert provenance["devices"] == [0, 1, 2, 3, 4]
    assert provenance["model_hash"] == MODEL_HASH.hex()
    assert provenance["decoder_sha256"] == FakeDecoder.sha256
    assert provenance["sample_time_us"] == records[0].sample_time_us
    assert provenance["received_bytes"] == 5 * (packet.HEADER_BYTES + LATENT + 2)
    assert provenance["acquisition"] == SURVEY.to_dict()
    times = [provenance[f"{step}_us"] for step in ("first_received", "last_received", "assembled", "decoded")]
    assert times == sorted(times)
    (line,) = wait_until(lambda: centre.logged("map"), what="log of the map")
    assert (line["event"], line["revision"], line["partial"]) == (1, 1, False)


def test_a_missing_device_makes_a_partial_map_and_its_late_latent_a_complete_one(start, send):
    centre = start(deadline_s=0.3)
    send(centre, *of_devices(0, 1, 3, 4))
    partial = wait_until(lambda: heard(centre, [0, 1, 3, 4]), what="partial map")
    assert partial.partial
    assert columns(partial) == [1, 2, None, 4, 5]
    send(centre, *of_devices(2))
    complete = wait_until(lambda: heard(centre, [0, 1, 2, 3, 4]), what="complete map")
    assert not complete.partial
    assert complete.revision == partial.revision + 1
    assert columns(complete) == [1, 2, 3, 4, 5]


def test_stop_draws_every_complete_event_that_was_acknowledged(start, send):
    class SlowDecoder(FakeDecoder):
        def decode(self, latents_int8, present):
            threading.Event().wait(0.02)
            return super().decode(latents_int8, present)

    centre = start(SlowDecoder())
    events = range(1, 21)
    for event in events:
        send(centre, *of_devices(0, 1, 2, 3, 4, event=event))
    centre.stop()
    assert sorted(centre.maps()) == list(events)
    (line,) = centre.logged("stopped")
    assert line["records"] == 100


def test_events_that_wait_are_drawn_together_and_a_bad_one_spoils_no_other(start, send):
    """The first event holds the decoder up until all are there; one of those cannot be decoded."""
    batches = []
    go_on = threading.Event()

    class Together(FakeDecoder):
        def decode_batch(self, latents_int8, present):
            batches.append(len(latents_int8))
            assert go_on.wait(20.0)
            if (latents_int8[:, 0, 0] == 99).any():
                raise ArithmeticError("these latents I cannot")
            return super().decode_batch(latents_int8, present)

    def send_event(event):
        send(centre, *of_devices(1, 2, 3, 4, event=event))
        send(centre, latent_record(event=event, sequence=event, value=99 if event == 5 else event))

    centre = start(Together())
    send_event(1)
    wait_until(lambda: batches, what="the first event with the decoder")
    for event in range(2, 8):
        send_event(event)
    go_on.set()
    wait_until(lambda: len(centre.maps()) == 6, what="six maps")
    assert batches[0] == 1 and batches[1] > 1
    assert sorted(centre.maps()) == [1, 2, 3, 4, 6, 7]
    assert columns(centre.maps()[4]) == [4, 2, 3, 4, 5]
    (line,) = centre.logged("map_failed")
    assert line["event"] == 5


def test_what_waited_for_a_device_at_the_stop_is_finished_after_the_next_start(start, send):
    centre = start()
    send(centre, *of_devices(0, 1, 2))
    centre.stop()
    assert centre.maps() == {}
    again = start()
    send(again, *of_devices(3, 4))
    stored = wait_until(lambda: again.maps().get(1), what="map")
    assert columns(stored) == [1, 2, 3, 4, 5]
    assert stored.revision == 1


def test_a_latent_long_after_a_restart_completes_the_partial_map(start, send):
    centre = start(deadline_s=0.1)
    send(centre, *of_devices(0, 1, 2, 3))
    partial = wait_until(lambda: heard(centre, [0, 1, 2, 3]), what="partial map")
    centre.stop()
    again = start()
    send(again, *of_devices(4))
    complete = wait_until(lambda: heard(again, [0, 1, 2, 3, 4]), what="complete map")
    assert complete.revision == partial.revision + 1
    assert columns(complete) == [1, 2, 3, 4, 5]


def test_a_picture_of_the_map_appears(start, send):
    centre = start(pictures=True)
    send(centre, *of_devices(0, 1, 2, 3, 4, event=12))
    picture = centre.folder / "pictures" / "survey1-event000012.png"
    wait_until(picture.exists, what="picture")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_does_not_hold_up_maps_or_the_stop(start, send, monkeypatch):
    def fail(*_args, **_fields):
        raise ValueError("no such colour")

    monkeypatch.setattr("central.export.render.draw_map", fail)
    centre = start(pictures=True)
    for event in (1, 2):
        send(centre, *of_devices(0, 1, 2, 3, 4, event=event))
    wait_until(lambda: len(centre.logged("picture_failed")) == 2, what="log of failed pictures")
    centre.stop()
    assert sorted(centre.maps()) == [1, 2]


def test_a_map_that_cannot_be_decoded_is_logged_and_the_next_is_drawn(start, send):
    class Picky(FakeDecoder):
        def decode(self, latents_int8, present):
            if latents_int8[0, 0] == 99:
                raise ArithmeticError("these latents I cannot")
            return super().decode(latents_int8, present)

    centre = start(Picky())
    send(centre, latent_record(value=99), *of_devices(1, 2, 3, 4))
    send(centre, *of_devices(0, 1, 2, 3, 4, event=2))
    wait_until(lambda: 2 in centre.maps(), what="map of event 2")
    (line,) = centre.logged("map_failed")
    assert line["event"] == 1
    assert "these latents I cannot" in line["reason"]
    centre.stop()
    again = start()
    wait_until(lambda: 1 in again.maps(), what="map of event 1 after a start with a better decoder")


def test_a_map_that_finds_no_room_is_kept_when_there_is_room(start, send):
    centre = start(deadline_s=0.2)
    disk = connect(centre.folder)
    disk.execute("CREATE TRIGGER full BEFORE INSERT ON map BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    send(centre, *of_devices(0, 1, 2, 3, 4))
    wait_until(lambda: centre.logged("map_commit_failed"), what="log of a map not kept")
    disk.execute("DROP TRIGGER full")
    disk.close()
    assert wait_until(lambda: heard(centre, [0, 1, 2, 3, 4]), what="map")


def test_latents_of_a_model_that_was_taken_away_are_said_and_kept(start, send):
    centre = start()
    send(centre, *of_devices(0, 1, 2))
    centre.stop()
    again = start(model_hash=OTHER_HASH)
    wait_until(lambda: len(again.logged("undecodable")) == 3, what="log of undecodable latents")
    again.stop()
    journal = Journal(again.folder)
    assert len(journal.undecoded()) == 3
    journal.close()


def test_a_read_that_fails_is_tried_again_and_nothing_is_lost(start, send):
    centre = start()
    # A first map shows that every thread has opened the file.
    send(centre, *of_devices(0, 1, 2, 3, 4))
    wait_until(lambda: centre.logged("map"), what="first map")
    disk = connect(centre.folder)
    disk.execute("ALTER TABLE map RENAME TO away")
    send(centre, *of_devices(0, 1, 2, 3, 4, event=2))
    wait_until(lambda: centre.logged("journal_not_read"), what="log of a failed read")
    assert centre.error is None
    disk.execute("ALTER TABLE away RENAME TO map")
    disk.close()
    wait_until(lambda: len(centre.logged("map")) == 2, what="the map, once it can be read")
    assert len(centre.logged("journal_not_read")) == 1, "one line an outage"


def test_a_second_centre_on_the_same_folder_is_refused(start):
    start()
    with pytest.raises(StoreError, match="another centre is running there"):
        start()


def test_maps_put_by_events_of_two_surveys_stay_apart(start, send):
    centre = start()
    send(centre, *of_devices(0, 1, 2, 3, 4, survey=1), *of_devices(0, 1, 2, 3, 4, survey=2))
    wait_until(lambda: len(centre.logged("map")) == 2, what="two maps")
    store = Store(centre.folder)
    assert [(m.survey, np.unique(m.velocity_mps[:, 5:]).tolist()) for m in store.newest()] == [
        (1, [1500.0]),
        (2, [1500.0]),
    ]
    store.close()


@pytest.fixture
def pty_port():
    master, slave = pty.openpty()
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


def test_a_receiver_that_ends_takes_the_gateways_lines_with_it(tmp_path, monkeypatch, pty_port):
    """They hold sockets of its context, which it waits for."""

    def broken(*_):
        wait_until(lambda: '"line_open"' in log.read_text(), what="the line")
        raise StoreError("the disk is gone")

    log = tmp_path / "central.jsonl"
    config = CentralConfig.model_validate(
        {
            "central": {"listen": "tcp://127.0.0.1:*", "data_dir": tmp_path / "data"},
            "model": [{"bundle": tmp_path, "decoder": tmp_path}],
            "gateway": {"ports": [pty_port], "tcp": "127.0.0.1:0"},
        }
    )
    service = Service(config, {MODEL_HASH: FakeDecoder()}, Log(log))
    monkeypatch.setattr(Connections, "follow", broken)
    with pytest.raises(StoreError, match="the disk is gone"):
        service.run()


def test_a_gateway_that_cannot_listen_is_an_error_that_leaves_nothing_open(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = CentralConfig.model_validate(
            {
                "central": {"listen": "tcp://127.0.0.1:*", "data_dir": tmp_path / "data"},
                "model": [{"bundle": tmp_path, "decoder": tmp_path}],
                "gateway": {"tcp": f"127.0.0.1:{taken.getsockname()[1]}"},
            }
        )
        with pytest.raises(ListenError, match="cannot listen there"):
            Service(config, {MODEL_HASH: FakeDecoder()}, Log(tmp_path / "log.jsonl"))
    # Neither the folder nor the port is held: the next start finds both free.
    service = Service(config, {MODEL_HASH: FakeDecoder()}, Log(tmp_path / "log.jsonl"))
    threading.Timer(0.5, service.stop).start()
    service.run()
