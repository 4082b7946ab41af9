"""A real device and a real centre: hello, health, clocks, and `epic central devices` while both are at work."""

import json
import threading
from contextlib import closing

import numpy as np
import pytest
from fake_decoder import FakeDecoder, latent_record
from releases import make_release
from tiny import ENCODER, SHAPE
from waiting import wait_until

import epic
from central.config import load_config as load_central
from central.fleet import device_registry as device_book
from central.fleet import gaps
from central.fleet.device_views import NEVER_SEEN, devices
from central.service import Service
from central.storage.database import connect
from firmware_py import __version__
from firmware_py.inference.bundle import load_bundle
from firmware_py.runtime import health, node
from firmware_py.runtime.config import load_config as load_node
from firmware_py.runtime.log import Log, now_us
from firmware_py.runtime.run import run_device

pytestmark = pytest.mark.slow

AHEAD_US = 5_000_000


class TinyDecoder(FakeDecoder):
    """For the tiny encoder's latents, of as many devices as the test has."""

    n_devices = 3
    latent = 8


def heard(data_dir):
    """Views of the devices that were heard; the others of their survey are listed too."""
    return [view for view in devices(data_dir) if view.state != NEVER_SEEN]


@pytest.fixture
def centre(tmp_path, monkeypatch):
    """A centre with a gateway at work in ``tmp_path``; returns the path of its configuration and its service."""
    monkeypatch.setattr(device_book, "POLL_S", 0.05)
    make_release(tmp_path / "bundle", "tiny", ENCODER)
    config = tmp_path / "central.toml"
    config.write_text(
        '[central]\nlisten = "tcp://127.0.0.1:*"\ninsecure = true\ndata_dir = "data"\ndeadline_s = 60.0\n'
        'pictures = false\n[[model]]\nbundle = "bundle"\ndecoder = "-"\n'
        '[gateway]\ntcp = "127.0.0.1:0"\n'
    )
    model_hash = load_bundle(tmp_path / "bundle").model_hash
    service = Service(load_central(config), {model_hash: TinyDecoder()}, Log(tmp_path / "central.jsonl"))
    thread = threading.Thread(target=service.run)
    thread.start()
    yield config, service
    service.stop()
    thread.join()


@pytest.fixture(params=["zmq", "tcp"])
def device(tmp_path, centre, request):
    """A device at work on the folder ``incoming``."""
    service = centre[1]
    endpoints = {"zmq": service.receiver.endpoint, "tcp": service.gateway.listener.endpoint}
    path = tmp_path / "node.toml"
    path.write_text(
        '[node]\ndevice = 1\nbundle = "bundle"\nreceivers = [0, 2]\n'
        f'[link]\nkind = "{request.param}"\nendpoint = "{endpoints[request.param]}"\ninsecure = true\n'
        '[source]\nkind = "folder"\npath = "incoming"\npoll_s = 0.05\n'
        '[health]\ninterval_s = 1\n[run]\nlog = "node.jsonl"\n'
    )
    (tmp_path / "incoming").mkdir()
    nodes = []
    thread = threading.Thread(target=run_device, args=(load_node(path), nodes.append))
    thread.start()
    wait_until(lambda: nodes, 60, "the device")
    yield nodes[0]
    nodes[0].stop()
    thread.join()


@pytest.fixture
def slow_clock(monkeypatch):
    """The device's clock is ``AHEAD_US`` behind the centre's."""
    for module in (health, node):
        monkeypatch.setattr(module, "now_us", lambda: now_us() - AHEAD_US)


@pytest.fixture
def no_clock(monkeypatch):
    """The device's clock is never set."""
    monkeypatch.setattr(node, "_clock_s", lambda: 0)


def record(folder, event):
    part = folder / f"event{event:06d}.npy"
    np.save(part, np.full(SHAPE, float(event), np.float32))
    part.rename(folder / "incoming" / part.name)


def shown(config, capsys, *options):
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        assert epic.main(["central", "devices", "--config", str(config), *options]) == 0
    return capsys.readouterr().out


def test_nothing_is_shown_before_a_device_is_heard(centre, capsys):
    assert shown(centre[0], capsys) == "no device has reported yet\n"


def test_a_device_is_known_by_what_it_sends(slow_clock, centre, device, tmp_path, capsys):
    record(tmp_path, 1)
    record(tmp_path, 2)

    def known():
        for view in json.loads(shown(centre[0], capsys, "--json")):
            if view["records"] == 2 and view["clock_offset_s"] is not None and view["encode_s"]:
                return view
        return None

    view = wait_until(known, 60, "two records and a health")
    assert (view["survey"], view["device"], view["state"]) == (1, 1, "on time")
    assert (view["boot"], view["sequence"], view["loss"], view["gaps"]) == (device.spool.boot, 2, 0, [])
    assert view["model_hash"] == load_bundle(tmp_path / "bundle").model_hash.hex()
    assert view["firmware"] == __version__
    assert abs(view["clock_offset_s"] - AHEAD_US / 1e6) <= view["round_trip_s"]
    assert view["bytes_received"] > 2 * (38 + 8)
    assert view["bytes_sent"] > 0
    assert view["disk_free_bytes"] > 0
    table = shown(centre[0], capsys)
    assert "on time" in table
    assert view["model_hash"] in table
    assert shown(centre[0], capsys, "--survey", "2") == "no device has reported yet\n"


def test_a_rate_that_is_set_reaches_a_device_on_each_link(centre, device, tmp_path, capsys):
    assert epic.main(["central", "rate", "--config", str(centre[0]), "4"]) == 0
    wait_until(lambda: device.rate.payload_bytes == 4, 60, "the rate")
    record(tmp_path, 1)

    def sizes():
        with closing(connect(tmp_path / "data")) as database:
            return database.execute("SELECT length(payload) FROM record").fetchall()

    assert wait_until(sizes, 60, "a record") == [(4,)]
    wait_until(lambda: heard(tmp_path / "data")[0].latent_bytes == 4, 60, "the device to say so")


def test_a_fresh_device_without_a_clock_takes_the_centres_time_and_is_answered_again_after_it_is_re_imaged(
    no_clock, centre, device, tmp_path, capsys
):
    record(tmp_path, 1)

    def boots():
        with closing(connect(tmp_path / "data")) as database:
            return database.execute("SELECT boot FROM record").fetchall()

    assert wait_until(boots, 60, "a record") == [(device.spool.boot,)]
    assert device.spool.boot > 1_700_000_000
    # As if it had lost its state and begun at 1970 once more: what the centre knows is ahead.
    first = device.spool.boot
    device.spool.boot = device.control_header.boot = 31
    device.link.statistics.connections += 1
    wait_until(lambda: device.spool.boot > first, 60, "a number after the first")
    assert epic.main(["central", "rate", "--config", str(centre[0]), "4"]) == 0
    wait_until(lambda: device.rate.payload_bytes == 4, 60, "the rate")


def test_what_is_refused_and_what_is_missing_is_said(centre, dealers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gaps, "GAP_AFTER_S", 0.0)
    model_hash = load_bundle(tmp_path / "bundle").model_hash
    dealer = dealers(centre[1].receiver.endpoint)
    for sequence in (1, 5):
        dealer.send(latent_record(device=2, sequence=sequence, model_hash=model_hash, payload=bytes(8)))
        assert dealer.answer()
    dealer.send(latent_record(device=2, sequence=6, payload=bytes(8)))
    assert b"none of the centre's" in dealer.answer().payload
    data_dir = tmp_path / "data"
    wait_until(lambda: [(v.loss, v.refused) for v in heard(data_dir)] == [(3, 1)], 60, "gap and refusal")
    table = shown(centre[0], capsys)
    assert "survey 1, device 2: gap in boot 1: 2 to 4, 3 missing" in table
    assert "none of the centre's" in table
    for sequence in (2, 3, 4):
        dealer.send(latent_record(device=2, sequence=sequence, model_hash=model_hash, payload=bytes(8)))
    wait_until(lambda: heard(data_dir)[0].loss == 0, 60, "the gap's end")
    log = [json.loads(line) for line in (tmp_path / "central.jsonl").read_text().splitlines()]
    told = [
        (line["message"], line["boot"], line["first"], line["last"])
        for line in log
        if "gap" in line["message"]
    ]
    assert told == [("gap", 1, 2, 4), ("gap_filled", 1, 2, 4)]


def test_a_new_connection_brings_a_hello(centre, device, tmp_path):
    def hellos():
        said = [json.loads(line) for line in (tmp_path / "node.jsonl").read_text().splitlines()]
        return sum(line["message"] == "control_sent" and line["type"] == 3 for line in said)

    before = wait_until(hellos, 60, "the first hello")
    device.link.statistics.connections += 1
    wait_until(lambda: hellos() > before, 60, "another hello")


def test_a_record_played_again_is_no_sign_of_life(centre, dealers, tmp_path):
    model_hash = load_bundle(tmp_path / "bundle").model_hash
    record = latent_record(device=2, model_hash=model_hash, payload=bytes(8))
    dealer = dealers(centre[1].receiver.endpoint)

    def known(bytes_more_than):
        (view,) = heard(tmp_path / "data") or [None]
        return view if view and view.bytes_received > bytes_more_than else None

    dealer.send(record)
    assert dealer.answer()
    first = wait_until(lambda: known(0), 60, "the device")
    dealer.send(record)
    assert dealer.answer()
    again = wait_until(lambda: known(first.bytes_received), 60, "its record once more")
    assert again.last_seen_us == first.last_seen_us


def test_records_that_the_store_lost_are_sent_again(centre, device, tmp_path):
    """As after a write-ahead log that was removed: the newest records and their counts are gone."""
    data_dir = tmp_path / "data"
    for event in range(1, 7):
        record(tmp_path, event)
    wait_until(lambda: heard(data_dir) and heard(data_dir)[0].records == 6, 60, "every record")
    log = tmp_path / "node.jsonl"
    wait_until(lambda: log.read_text().count('"acknowledged"') == 6, 60, "every acknowledgement")
    with closing(connect(data_dir)) as database:
        kept = "SELECT sequence, event, payload FROM record ORDER BY sequence"
        before = database.execute(kept).fetchall()
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM record WHERE sequence > 2")
        database.execute("UPDATE device_boot SET records = 2, highest = 2, scanned = 2")
        database.execute("COMMIT")
        wait_until(lambda: database.execute(kept).fetchall() == before, 60, "the four records")
    view = wait_until(lambda: next((v for v in heard(data_dir) if v.resent), None), 60, "the next health")
    assert (view.resent, view.not_kept, view.acknowledged_lost) == (4, 0, 0)
    assert "sent_again" in (tmp_path / "central.jsonl").read_text()
