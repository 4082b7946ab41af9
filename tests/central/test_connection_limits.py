"""Limits on the memory, descriptors and time that a peer with an allowed key can take; honest load is not cut off."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq
import zmtp
from chaos_world import tiny_world
from fake_decoder import LATENT, MODEL_HASH, latent_record
from honest import RESEND_S, open_link
from ports import free_port
from waiting import wait_until

from central.ingest import connection_limits
from central.ingest.authentication import CurveAuthenticator
from central.ingest.connection_limits import ConnectionLimits, Key
from central.ingest.receiver import MAX_FRAMES, Expected, Receiver
from central.security import keys
from firmware_py.links.keys import read_key_folder
from firmware_py.links.zeromq import ZmqLink
from firmware_py.protocol import packet
from firmware_py.protocol.rate import Coding
from firmware_py.runtime.log import Log
from testbed.processes import resident_mib

MODELS = {MODEL_HASH: Expected(n_devices=5, coding=Coding(LATENT))}
ZMTP = Path(zmtp.__file__)


@pytest.fixture
def key_folder(tmp_path):
    for name in ("device-0", "device-1"):
        keys.new_keys(tmp_path / "keys", name)
        keys.allow(tmp_path / "keys", name)
    return tmp_path / "keys"


@pytest.fixture
def centre(data_dir, tmp_path):
    """Runs a receiver: ``centre(key_folder)``; returns it and its port."""
    with ExitStack() as stack:

        def start(key_folder=None):
            stop = threading.Event()
            authenticator = CurveAuthenticator(key_folder) if key_folder else None
            log = Log(tmp_path / "log.jsonl")
            receiver = Receiver(
                "tcp://127.0.0.1:*", data_dir, MODELS, lambda newest: None, log, authenticator=authenticator
            )
            thread = threading.Thread(target=receiver.run, args=(stop.is_set,))
            thread.start()
            stack.callback(thread.join, 60)
            stack.callback(stop.set)
            return receiver, int(receiver.endpoint.rpartition(":")[2])

        yield start


def attack(port, seconds, *options):
    return subprocess.Popen(
        [sys.executable, str(ZMTP), str(port), str(seconds), *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
    )


def deliver(link, record):
    """Send as a device does, again until it is answered; the answer to it."""
    data = packet.encode_record(record)

    def answer():
        if link.send(data):
            return link.receive(RESEND_S)
        return link.receive(0.02)

    return packet.decode_record(wait_until(answer, 60, "the answer"))


@pytest.mark.slow
@pytest.mark.parametrize("part_bytes", [1 << 16, 40])
def test_messages_without_end_are_cut_off_and_take_no_memory(centre, key_folder, part_bytes):
    receiver, port = centre(key_folder)
    with closing(ZmqLink(receiver.endpoint, read_key_folder(key_folder / "device-0"))) as honest:
        assert deliver(honest, latent_record(device=0)).type == packet.ACK
        idle_mib = most_mib = resident_mib()
        attacker = attack(port, 6, key_folder / "device-1", "--part-bytes", part_bytes)
        number = 1
        while attacker.poll() is None:
            number += 1
            record = latent_record(device=0, sequence=number, event=number)
            assert deliver(honest, record).type == packet.ACK
            most_mib = max(most_mib, resident_mib())
    told = json.loads(attacker.communicate()[0])
    assert told["cut_off"] >= 1 and receiver.counts["cut_off"] >= 1
    assert most_mib - idle_mib < 80


def test_honest_load_is_never_cut_off(centre, data_dir, tmp_path):
    """Ten times the bound in total, over several connections, in records of usual and of largest size."""
    receiver, _ = centre()
    body = packet.encode_record(latent_record(payload=bytes(60_000)))
    usual = packet.encode_record(latent_record(sequence=2))
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        dealers = [stack.enter_context(closing(context.socket(zmq.DEALER))) for _ in range(3)]
        for dealer in dealers:
            dealer.linger = 0
            dealer.connect(receiver.endpoint)
        sent = 0
        for number in range(250):
            for dealer in dealers:
                for data in (body, usual, usual):
                    dealer.send(data)
                    sent += 1
            while number % 20 == 19 and dealers[0].poll(0):
                dealers[0].recv()
        wait_until(
            lambda: (
                sum(receiver.counts[kind] for kind in ("refused", "duplicates", "records", "damaged")) == sent
            ),
            60,
            "every record",
        )
        assert receiver.counts["bytes_received"] > 10 * connection_limits.MAX_UNDELIVERED_BYTES
        assert receiver.counts["cut_off"] == 0


def test_a_message_of_many_frames_suspends_its_key(centre, key_folder, tmp_path):
    receiver, port = centre(key_folder)
    client = zmtp.Client(port, key_folder / "device-1")
    for _ in range(MAX_FRAMES):
        client.send(b"part", more=True)
    client.send(b"the last")
    with pytest.raises(OSError):
        while client._receive(1):
            pass
    wait_until(lambda: receiver.counts["cut_off"], what="the count")
    with pytest.raises(OSError):
        zmtp.Client(port, key_folder / "device-1").send(b"again")
    with closing(ZmqLink(receiver.endpoint, read_key_folder(key_folder / "device-0"))) as honest:
        assert deliver(honest, latent_record(device=0)).type == packet.ACK
    wait_until(lambda: "cut_off" in (tmp_path / "log.jsonl").read_text(), what="the line in the log")


def test_a_key_has_only_so_many_connections_and_loses_the_oldest(centre, key_folder, monkeypatch):
    monkeypatch.setattr("central.ingest.receiver.DEVICE_CONNECTIONS", 3)
    receiver, port = centre(key_folder)
    with ExitStack() as stack:
        clients = []
        for number in range(4):
            clients.append(zmtp.Client(port, key_folder / "device-1"))
            stack.callback(clients[-1].socket.close)
            clients[-1].send(packet.encode_record(latent_record(device=1, sequence=number + 1)))
            assert clients[-1]._command(), "its acknowledgement"
        with pytest.raises(OSError):
            clients[0]._receive(1)
        clients[1].send(packet.encode_record(latent_record(device=1, sequence=9)))
        assert clients[1]._command()
    assert receiver.counts["cut_off"] == 1


def test_connections_without_a_message_give_way_the_oldest_first(centre, monkeypatch):
    monkeypatch.setattr(connection_limits, "MAX_UNPROVEN", 3)
    receiver, port = centre()
    with ExitStack() as stack:
        proven = zmtp.Client(port)
        stack.callback(proven.socket.close)
        proven.send(packet.encode_record(latent_record()))
        assert proven._command()
        silent = []
        for number in range(1, 6):
            silent.append(stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 20))))
            wait_until(lambda number=number: receiver.counts["connections"] == number + 1, what="its count")
        assert receiver.counts["cut_off"] == 2
        for peer in silent[:2]:
            while peer.recv(100):
                pass
        proven.send(packet.encode_record(latent_record(sequence=2)))
        assert proven._command(), "one that has delivered is none of them"


@pytest.mark.slow
def test_devices_come_in_while_others_hold_all_the_files_that_they_can(tmp_path):
    """Three endpoints and 512 file descriptors; 1,500 silent connections at once."""
    bundle = tiny_world(tmp_path).bundle
    for device in (0, 1):
        keys.new_keys(tmp_path / "keys", f"device-{device}")
        keys.allow(tmp_path / "keys", f"device-{device}")
    port, tcp_port, page_port = free_port(), free_port(), free_port()
    (tmp_path / "central.toml").write_text(
        f'[central]\nlisten = "tcp://127.0.0.1:{port}"\nkeys = "keys"\ndata_dir = "central"\nlog = "log.jsonl"\n'
        f'pictures = false\npage_listen = "127.0.0.1:{page_port}"\n[gateway]\ntcp = "127.0.0.1:{tcp_port}"\n'
        '[[model]]\nbundle = "bundle"\ndecoder = "none"\n'
    )
    limited = ["prlimit", "--nofile=512:512", sys.executable]
    with ExitStack() as stack:
        centre = stack.enter_context(
            subprocess.Popen(
                [*limited, str(ZMTP.with_name("centre_process.py")), str(tmp_path / "central.toml")]
            )
        )
        stack.callback(centre.terminate)
        log = tmp_path / "log.jsonl"
        wait_until(lambda: log.exists() and '"page"' in log.read_text(), 60, "the centre")
        silent = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable,
                    str(ZMTP.with_name("silent.py")),
                    "500",
                    str(port),
                    str(tcp_port),
                    str(page_port),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(silent.stdin.close)
        assert silent.stdout.readline() == "open\n"
        for device, over in ((0, "zmq"), (1, "tcp")):
            link = open_link(
                tmp_path / "keys", device, f"tcp://127.0.0.1:{port}", f"127.0.0.1:{tcp_port}", over
            )
            stack.callback(link.close)
            record = packet.Record(
                packet.LATENT, device, 1, 1, 1, 1, model_hash=bundle.model_hash, payload=bytes(8)
            )
            assert deliver(link, record).type == packet.ACK


@pytest.fixture
def pair():
    """A connection to a port of its own: the port, the client's end, the server's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
    ):
        yield listener.getsockname()[1], near, far


@pytest.fixture
def limits(pair):
    found = ConnectionLimits(Counter(), Log(None))
    found.listen_at(f"tcp://127.0.0.1:{pair[0]}")
    return found


def test_a_descriptor_that_is_another_sockets_by_now_is_left_alone(limits, pair):
    _, _, far = pair
    limits.accepted(far.fileno())
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()) as one,
    ):
        os.dup2(one.fileno(), far.fileno())
        limits.cut_off(far.fileno(), "a mistake")
        with other.accept()[0] as end:
            end.sendall(b"as ever")
            assert one.recv(100) == b"as ever"
    assert limits.counts["cut_off"] == 0


def test_a_connection_that_zeromq_closes_while_it_is_looked_at_stops_nothing(limits, pair, monkeypatch):
    _, _, far = pair
    fd = far.fileno()

    def closed(_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    def at_that_moment(do, *values):
        with monkeypatch.context() as patched:
            patched.setattr(connection_limits.os, "fstat", closed)
            do(fd, *values)

    at_that_moment(limits.accepted)
    at_that_moment(limits.delivered, 6000, Key(b"a key", 5))
    limits.accepted(fd)
    at_that_moment(limits.cut_off, "many frames")
    assert limits.counts["cut_off"] == 0


def test_no_socket_but_the_routers_is_taken_for_a_connection(limits):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()) as one,
    ):
        limits.accepted(one.fileno())
        limits.cut_off(one.fileno(), "a mistake")
        assert limits.counts["cut_off"] == 0
    before = len(os.listdir("/proc/self/fd"))
    limits.accepted(os.open("/dev/null", os.O_RDONLY))
    assert len(os.listdir("/proc/self/fd")) == before + 1


@pytest.mark.parametrize("delivered, cut", [(False, 1), (True, 0)])
def test_bytes_that_were_received_and_not_delivered_count(limits, pair, monkeypatch, delivered, cut):
    monkeypatch.setattr(connection_limits, "MAX_UNDELIVERED_BYTES", 5000)
    monkeypatch.setattr(connection_limits, "CHECK_S", 0.0)
    _, near, far = pair
    limits.accepted(far.fileno())
    near.sendall(bytes(6000))
    far.recv(6000, socket.MSG_WAITALL)
    if delivered:
        limits.delivered(far.fileno(), 6000, Key(b"a key", 5))
    limits.check(emptied=False)
    assert limits.counts["cut_off"] == cut


def test_connections_together_have_a_bound_and_the_largest_is_cut_off(monkeypatch):
    monkeypatch.setattr(connection_limits, "MAX_UNDELIVERED_BYTES", 5000)
    monkeypatch.setattr(connection_limits, "MAX_TOTAL_BYTES", 7000)
    limits = ConnectionLimits(Counter(), Log(None))
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        limits.listen_at(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        ends = []
        for size in (4000, 4500):
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            far = stack.enter_context(listener.accept()[0])
            limits.accepted(far.fileno())
            near.sendall(bytes(size))
            far.recv(size, socket.MSG_WAITALL)
            ends.append(far)
        limits.check(emptied=False)
        assert limits.counts["cut_off"] == 1
        ends[0].sendall(b"as ever")
        with pytest.raises(BrokenPipeError):
            ends[1].sendall(b"no more")
