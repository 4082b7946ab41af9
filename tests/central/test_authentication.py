"""Authentication at the centre: real CURVE connections, and keys revoked while they are open."""

import threading
from contextlib import contextmanager

import pytest
import zmq
from fake_decoder import LATENT, MODEL_HASH, latent_record
from waiting import wait_until

from central.ingest.authentication import CurveAuthenticator
from central.ingest.receiver import GATEWAYS, Expected, Receiver
from central.security import keys
from central.security.keys import KeyRing, KeysError
from central.storage.journal import Journal
from firmware_py.links.keys import read_key_folder
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding
from firmware_py.runtime.log import Log

MODELS = {MODEL_HASH: Expected(n_devices=5, coding=Coding(LATENT))}


@pytest.fixture
def key_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.05)
    for name in ("device-0", "device-1", "gateway-a"):
        keys.new_keys(tmp_path / "keys", name)
        keys.allow(tmp_path / "keys", name)
    return tmp_path / "keys"


@contextmanager
def centre(key_folder, data_dir):
    stop = threading.Event()
    receiver = Receiver(
        "tcp://127.0.0.1:*",
        data_dir,
        MODELS,
        lambda newest: None,
        Log(None),
        authenticator=CurveAuthenticator(key_folder),
    )
    thread = threading.Thread(target=receiver.run, args=(stop.is_set,))
    thread.start()
    try:
        yield receiver
    finally:
        stop.set()
        thread.join()


@contextmanager
def link(receiver, key_folder, name):
    opened = ZmqLink(receiver.endpoint, read_key_folder(key_folder / name))
    try:
        yield opened
    finally:
        opened.close()


def ask(opened, record, timeout_s=20.0):
    """Send as soon as the link is up; the answer, or None when none comes in time."""
    data = packet.encode_record(record)
    for _ in range(int(timeout_s / 0.02)):
        if opened.send(data):
            break
        opened.receive(0.02)
    answer = opened.receive(timeout_s)
    return None if answer is None else packet.decode_record(answer)


def kept(data_dir):
    journal = Journal(data_dir)
    try:
        return [(row.device, row.sequence) for row in journal.undecoded()]
    finally:
        journal.close()


def test_a_device_with_its_key_is_kept_and_acknowledged(key_folder, data_dir):
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "device-1") as opened:
        assert ask(opened, latent_record(device=1)).type == packet.ACK
    assert kept(data_dir) == [(1, 1)]


def test_a_record_that_claims_another_device_is_refused_and_counted(key_folder, data_dir):
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "device-1") as opened:
        answer = ask(opened, latent_record(device=0))
        assert answer.type == packet.REFUSAL
        assert b"the key is device-1's" in answer.payload
        assert receiver.counts["identity_mismatch"] == 1
    assert kept(data_dir) == []


def test_of_what_is_no_latent_nothing_is_refused_to_an_impostor_either(key_folder, data_dir):
    """Its own latent of that number is a good one."""
    hello = packet.Record(packet.HELLO, 0, 1, 1, 1)
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "device-1") as opened:
        assert ask(opened, hello, timeout_s=0.5) is None
        assert ask(opened, latent_record(device=1)).type == packet.ACK
        assert (receiver.counts["identity_mismatch"], receiver.counts["refused"]) == (1, 0)


def test_a_gateway_speaks_for_its_devices(key_folder, data_dir):
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "gateway-a") as opened:
        assert ask(opened, latent_record(device=0)).type == packet.ACK
        assert ask(opened, latent_record(device=1)).type == packet.ACK


def test_a_gateway_does_not_speak_for_a_device_that_is_not_let_in(key_folder, data_dir):
    """It checks MACs by a copy of the key folder, which may be older than a revocation here."""
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "gateway-a") as opened:
        assert ask(opened, latent_record(device=2), timeout_s=0.5) is None, "never allowed"
        assert ask(opened, latent_record(device=1)).type == packet.ACK
        keys.revoke(key_folder, "device-1")
        for sequence in range(2, 200):
            if ask(opened, latent_record(device=1, sequence=sequence), timeout_s=0.2) is None:
                break
        else:
            pytest.fail("still answered")
        assert ask(opened, latent_record(device=0)).type == packet.ACK, "the others are"
        assert receiver.counts["not_allowed"] == 2
    assert (1, sequence) not in kept(data_dir)


def test_a_thread_of_the_centre_needs_no_key(key_folder, data_dir):
    with centre(key_folder, data_dir) as receiver:
        own = receiver.context.socket(zmq.DEALER)
        own.connect(GATEWAYS)
        own.send(packet.encode_record(latent_record(device=1)))
        assert own.poll(20_000)
        own.close()
    assert kept(data_dir) == [(1, 1)]


def test_strangers_get_nowhere(key_folder, data_dir, tmp_path, dealers):
    keys.new_keys(tmp_path / "other", "device-1")
    (tmp_path / "other/device-1/centre.public").write_bytes((key_folder / "centre.public").read_bytes())
    with centre(key_folder, data_dir) as receiver:
        in_clear = dealers(receiver.endpoint)
        in_clear.send(latent_record(device=1))
        with link(receiver, tmp_path / "other", "device-1") as unknown:
            assert not unknown.send(b"anything")
            assert unknown.receive(0.3) is None
            assert not unknown.send(b"anything")
        # Allowed devices are still admitted.
        with link(receiver, key_folder, "device-0") as opened:
            assert ask(opened, latent_record(device=0)).type == packet.ACK
        assert in_clear.answer(0.1) is None
        wait_until(lambda: receiver.counts["auth_rejected"] >= 2, what="the count of rejected connections")
    assert kept(data_dir) == [(0, 1)]


def test_a_revocation_holds_on_a_connection_that_is_open(key_folder, data_dir):
    with centre(key_folder, data_dir) as receiver, link(receiver, key_folder, "device-1") as opened:
        assert ask(opened, latent_record(device=1, sequence=1)).type == packet.ACK
        keys.revoke(key_folder, "device-1")
        refused_at = None
        for sequence in range(2, 200):
            if ask(opened, latent_record(device=1, sequence=sequence), timeout_s=0.2) is None:
                refused_at = sequence
                break
        assert refused_at is not None
        assert receiver.counts["not_allowed"] >= 1
        # The connection is closed, and the device learns the reason when it reconnects.
        wait_until(lambda: opened.receive(0.05) or opened.statistics.key_rejected, what="the reason")
        assert "does not allow this key: it was revoked" in opened.statistics.fault
        # Allowed again, it goes on: nothing was set aside.
        keys.allow(key_folder, "device-1")
        for _ in range(100):
            if ask(opened, latent_record(device=1, sequence=refused_at), timeout_s=0.2):
                break
        else:
            pytest.fail("not allowed again")
    assert (1, refused_at) in kept(data_dir)


def test_a_revocation_ends_a_connection_that_is_silent(key_folder, data_dir):
    with (
        centre(key_folder, data_dir) as receiver,
        link(receiver, key_folder, "device-1") as revoked,
        link(receiver, key_folder, "device-0") as other,
    ):
        for one, device in ((revoked, 1), (other, 0)):
            assert ask(one, latent_record(device=device)).type == packet.ACK
        keys.revoke(key_folder, "device-1")
        wait_until(lambda: revoked.receive(0.05) or revoked.statistics.key_rejected, what="the reason")
        assert "does not allow this key: it was revoked" in revoked.statistics.fault
        assert (receiver.counts["cut_off"], receiver.counts["not_allowed"]) == (1, 1)
        assert ask(other, latent_record(device=0, sequence=2)).type == packet.ACK


def test_a_centre_whose_keys_do_not_load_does_not_listen(key_folder):
    (key_folder / "centre.secret").unlink()
    with pytest.raises(KeysError, match=r"centre\.secret"):
        CurveAuthenticator(key_folder)
