"""The receiver over real sockets: nothing is acknowledged that is not on the disk."""

import json
import socket
import threading

import pytest
import zmq
from fake_decoder import LATENT, MODEL_HASH, OTHER_HASH, latent_record
from waiting import wait_until

from central.ingest import connections
from central.ingest import receiver as module
from central.ingest.receiver import Expected, Receiver, ReceiverError
from central.storage.database import DamagedStoreError, connect
from central.storage.journal import Journal
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding
from firmware_py.runtime.log import Log


class Running:
    """A receiver on a thread; ``told`` are the ids it told of."""

    def __init__(self, data_dir, log_path):
        self.told = []
        models = {MODEL_HASH: Expected(n_devices=5, coding=Coding(LATENT))}
        self._log = Log(log_path)
        self.receiver = Receiver("tcp://127.0.0.1:*", data_dir, models, self.told.append, self._log)
        self.counts = self.receiver.counts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.receiver.run, args=(self._stopping.is_set,))

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self.receiver.close()
        self._log.close()


@pytest.fixture
def stopped(data_dir, tmp_path):
    """A receiver that listens and does not read yet."""
    running = Running(data_dir, tmp_path / "log.jsonl")
    yield running
    running.stop()


@pytest.fixture
def running(stopped):
    stopped.start()
    return stopped


@pytest.fixture
def dealer(dealers, stopped):
    return dealers(stopped.receiver.endpoint)


def kept(data_dir, event=1):
    journal = Journal(data_dir)
    records = journal.of_event((1, event, MODEL_HASH))
    journal.close()
    return records


def test_a_record_is_on_the_disk_when_it_is_acknowledged(running, dealer, data_dir):
    dealer.send(latent_record(device=2, sequence=7, boot=3))
    ack = dealer.answer()
    assert (ack.type, ack.device, ack.survey, ack.boot, ack.sequence) == (packet.ACK, 2, 1, 3, 7)
    (record,) = kept(data_dir)
    assert record.device == 2
    wait_until(lambda: running.told == [record.id], what="word of it")


def test_wire_bytes_are_those_the_device_counts(running, data_dir):
    link = ZmqLink(running.receiver.endpoint)
    data = packet.encode_record(latent_record())
    wait_until(lambda: link.send(data), what="connection")
    assert link.receive(20.0) is not None
    link.close()
    (record,) = kept(data_dir)
    assert record.wire_bytes == len(data) + 2
    assert running.counts["bytes_received"] == record.wire_bytes


def test_no_acknowledgement_without_a_commit_and_the_record_is_taken_when_sent_again(
    running, dealer, data_dir
):
    disk = connect(data_dir)
    disk.execute("CREATE TRIGGER full BEFORE INSERT ON record BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    dealer.send(latent_record())
    wait_until(lambda: running.counts["commit_failed"], what="failed commit")
    assert dealer.answer(timeout_s=0.3) is None
    assert running.told == []
    disk.execute("DROP TRIGGER full")
    disk.close()
    dealer.send(latent_record())
    assert dealer.answer().type == packet.ACK
    assert len(kept(data_dir)) == 1
    assert running.counts["records"] == 1


def test_a_damaged_store_ends_the_receiver(data_dir, dealers, monkeypatch):
    """A record that cannot be committed is otherwise tried again; in a damaged store it never succeeds."""
    models = {MODEL_HASH: Expected(n_devices=5, coding=Coding(LATENT))}
    receiver = Receiver("tcp://127.0.0.1:*", data_dir, models, lambda newest: None, Log(None))

    def commit(*_):
        raise DamagedStoreError("journal: cannot commit 1 records: central.sqlite is damaged")

    monkeypatch.setattr(Journal, "commit", commit)
    dealers(receiver.endpoint).send(latent_record())
    with pytest.raises(DamagedStoreError):
        receiver.run(lambda: receiver.counts["commit_failed"] > 0)


def test_duplicates_are_acknowledged_again_and_kept_once(running, dealer, data_dir):
    for _ in range(3):
        dealer.send(latent_record())
        assert dealer.answer().type == packet.ACK
    assert len(kept(data_dir)) == 1
    wait_until(lambda: running.counts["duplicates"] == 2, what="count of duplicates")
    assert len(running.told) == 1


def test_records_that_wait_together_are_acknowledged_together_by_boot(stopped, dealer, data_dir):
    first = [latent_record(sequence=s) for s in range(1, 11)]
    second = [latent_record(sequence=s, boot=2) for s in (1, 2)]
    dealer.send(*first, *second)
    # Everything is in the socket before the receiver looks.
    probe = zmq.Poller()
    probe.register(stopped.receiver._socket, zmq.POLLIN)
    assert probe.poll(20_000)
    stopped.start()
    named, answers = set(), 0
    while len(named) < 12:
        ack = dealer.answer()
        assert ack is not None and ack.type == packet.ACK
        answers += 1
        named |= {(ack.boot, sequence) for sequence in packet.acknowledged_sequences(ack)}
    assert named == {(r.boot, r.sequence) for r in first + second}
    assert answers < 12
    assert len(kept(data_dir)) == 12


def test_each_device_is_answered_on_its_own_connection(running, dealers):
    two = {d: dealers(running.receiver.endpoint, f"epic-{d}".encode()) for d in (0, 1)}
    for device, dealer in two.items():
        dealer.send(latent_record(device=device))
    assert {device: dealer.answer().device for device, dealer in two.items()} == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (latent_record(model_hash=OTHER_HASH), f"encoder {OTHER_HASH.hex()} is none of the centre's"),
        (
            latent_record(payload=b"\0" * (LATENT - 1)),
            f"expected a latent of {LATENT} or {LATENT // 2} bytes, got {LATENT - 1}",
        ),
        (latent_record(payload=b""), f"expected a latent of {LATENT} or {LATENT // 2} bytes, got 0"),
        (latent_record(device=5), "device 5 is not of this survey's 0 to 4"),
        (latent_record(sample_time_us=(1 << 64) - 1), "set the device's clock"),
    ],
)
def test_what_can_never_be_in_a_map_is_refused_with_the_reason(running, dealer, data_dir, record, reason):
    dealer.send(record)
    refusal = dealer.answer()
    assert (refusal.type, refusal.boot, refusal.sequence) == (packet.REFUSAL, record.boot, record.sequence)
    assert reason in refusal.payload.decode()
    assert kept(data_dir) == []
    dealer.send(latent_record())
    assert dealer.answer().type == packet.ACK


@pytest.mark.parametrize("kind", [kind for kind in packet.TYPES if kind != packet.LATENT])
def test_what_is_no_latent_is_never_refused(running, dealer, data_dir, kind):
    """Each type counts numbers of its own: a device would set aside the latent that has the number."""
    dealer.send(packet.Record(kind, 0, 1, 1, 1, model_hash=MODEL_HASH, payload=b"?"))
    dealer.send(latent_record())
    answer = dealer.answer()
    assert (answer.type, answer.sequence) == (packet.ACK, 1)
    assert dealer.answer(timeout_s=0.1) is None
    assert (running.counts["not_taken"], running.counts["refused"]) == (1, 0)


def test_another_record_under_a_number_in_use_is_refused_and_not_acknowledged(running, dealer, data_dir):
    dealer.send(latent_record(value=1))
    assert dealer.answer().type == packet.ACK
    dealer.send(latent_record(value=2))
    refusal = dealer.answer()
    assert refusal.type == packet.REFUSAL
    assert "another record is kept as device 0, boot 1, sequence 1" in refusal.payload.decode()
    (record,) = kept(data_dir)
    assert record.payload[0] == 1


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"EP",),
        (bytes(range(256)),),
        (packet.encode_record(latent_record())[:-1],),
        (packet.encode_record(latent_record()) + b"\0",),
        (b"", packet.encode_record(latent_record())),
    ],
)
def test_garbage_is_counted_and_the_next_record_is_taken(running, dealer, data_dir, parts):
    dealer.send_bytes(*parts)
    dealer.send(latent_record())
    assert dealer.answer().type == packet.ACK
    assert running.counts["damaged"] == 1
    assert len(kept(data_dir)) == 1


def test_a_peer_that_speaks_no_zeromq_does_no_harm(running, dealer):
    port = int(running.receiver.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: centre\r\n\r\n" * 50)
        dealer.send(latent_record())
        assert dealer.answer().type == packet.ACK


def test_a_connection_that_says_nothing_is_sent_away_and_counted(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_MS", 100)
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.0)
    running = Running(data_dir, tmp_path / "log.jsonl")
    running.start()
    port = int(running.receiver.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
        # The greeting, and the end.
        while silent.recv(100):
            pass
    wait_until(lambda: running.counts["disconnected"] == 1, what="the end of it")
    running.stop()
    assert running.counts["auth_rejected"] == 1
    assert '"message": "auth_rejected", ' in (tmp_path / "log.jsonl").read_text()


def test_messages_without_sense_do_not_hold_up_a_group(stopped, dealer, monkeypatch):
    monkeypatch.setattr(module, "GROUP_RECORDS", 3)
    for _ in range(10):
        dealer.send_bytes(b"no record")
    dealer.send(latent_record())
    receiver = stopped.receiver
    groups = []
    while not groups or not groups[-1]:
        assert receiver._socket.poll(20_000)
        before = stopped.counts["damaged"]
        groups.append(receiver._drain())
        assert stopped.counts["damaged"] - before <= 3
    assert len(groups) >= 4


def test_a_flood_of_refusals_fills_no_log(stopped, dealer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOG_LINES", 3)
    monkeypatch.setattr(module, "LOG_S", 1e6)
    stopped.start()

    def flood(messages):
        before = stopped.counts["damaged"]
        for _ in range(messages):
            dealer.send_bytes(b"no record")
        wait_until(lambda: stopped.counts["damaged"] == before + messages, what="all of them")

    flood(10)
    monkeypatch.setattr(module, "LOG_S", 0.0)
    flood(1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["message"] for row in rows] == ["damaged"] * 3 + ["unwritten", "damaged"]
    assert rows[3]["lines"] == 7


def test_a_device_that_comes_back_is_answered_while_its_old_connection_stands(running, dealers, dealer):
    dealer.send(latent_record())
    assert dealer.answer() is not None
    again = dealers(running.receiver.endpoint)
    again.send(latent_record(boot=2))
    assert again.answer().boot == 2


def test_a_peer_that_takes_the_name_of_a_connection_gets_none_of_its_answers(running, dealers):
    first = dealers(running.receiver.endpoint, b"epic-0")
    first.send(latent_record())
    assert first.answer() is not None
    second = dealers(running.receiver.endpoint, b"epic-0")
    second.send(latent_record(boot=2))
    assert second.answer(0.5) is None
    first.send(latent_record(boot=3))
    assert first.answer().boot == 3


def test_a_device_that_is_gone_costs_nothing_but_its_answer(running, dealers, data_dir):
    leaver = dealers(running.receiver.endpoint, b"leaver")
    leaver.send(latent_record())
    wait_until(lambda: kept(data_dir), what="record")
    leaver.close()
    stayer = dealers(running.receiver.endpoint, b"stayer")
    stayer.send(latent_record(device=1))
    assert stayer.answer().device == 1


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [
        ("in use", "is another centre running"),
        ("tcp://127.0.0.1", "expected tcp://address:port"),
        ("tcp://192.0.2.1:5557", "expected tcp://address:port"),
    ],
)
def test_an_endpoint_that_cannot_be_listened_on_is_one_line(stopped, data_dir, tmp_path, endpoint, advice):
    endpoint = stopped.receiver.endpoint if endpoint == "in use" else endpoint
    with pytest.raises(ReceiverError) as caught:
        Receiver(endpoint, data_dir, {}, lambda newest: None, Log(tmp_path / "log2.jsonl"))
    message = str(caught.value)
    assert message.startswith(f"{endpoint}: cannot listen there")
    assert advice in message
    assert "\n" not in message
