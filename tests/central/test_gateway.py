"""Lines into the centre: whoever is at the far end, only what devices sealed gets in, and they hear of it."""

import itertools
import os
import pty
import socket
import subprocess
import sys
import threading
import tty
from contextlib import closing

import pytest
import zmq
from fake_decoder import OTHER_HASH, latent_record
from file_limit import no_file_left
from gateway_centre import GatewayCentre, deliver
from waiting import wait_until

from central.config import GatewaySection
from central.gateway import gateway
from central.gateway.gateway import Gateway
from central.gateway.sessions import FrameAuthenticators
from central.security import keys
from central.security.keys import KeyRing
from firmware_py.links import stream as link_stream
from firmware_py.links.base import LinkError
from firmware_py.protocol import packet
from firmware_py.runtime.log import Log
from testbed.emulation.serial_emulator import EmulatedSerial

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(link_stream, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(KeyRing, "REFRESH_S", 0.05)


@pytest.fixture
def centre(tmp_path):
    """A centre with a TCP listener."""
    with GatewayCentre(tmp_path) as running:
        yield running


def connect(centre) -> socket.socket:
    host, port = centre.endpoint.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def counted(centre, records) -> dict | None:
    """The last counters in the log of a line with so many records."""
    rows = [row for row in centre.logged("line") if row.get("records") == records]
    return rows[-1] if rows else None


def hear(connection, deframer) -> packet.Record:
    """The next record that comes down a connection."""
    while not (records := deframer.feed(connection.recv(4096))):
        pass
    return packet.decode_record(records[0])


def test_records_over_tcp_are_kept_and_answered(centre):
    with closing(centre.tcp_device(2)) as device:
        for sequence in (1, 2, 3):
            answer = deliver(device, latent_record(device=2, sequence=sequence))
            assert (answer.type, answer.device, answer.sequence) == (packet.ACK, 2, sequence)
    assert sorted(centre.kept()) == [(2, 1), (2, 2), (2, 3)]


def test_several_serial_ports_at_once_each_hear_their_own(tmp_path):
    with (
        EmulatedSerial() as one,
        EmulatedSerial() as two,
        GatewayCentre(tmp_path, [one.centre_path, two.centre_path]) as centre,
    ):
        devices = [centre.serial_device(d, line.device_path) for d, line in enumerate((one, two))]
        for sequence in range(1, 6):
            for number, link in enumerate(devices):
                answer = deliver(link, latent_record(device=number, sequence=sequence))
                assert (answer.type, answer.device, answer.sequence) == (packet.ACK, number, sequence)
        for link in devices:
            link.close()
        assert len(centre.kept()) == 10
    # A record that came before the gateway had opened its port was sent again.
    lines = {row["name"]: row["records"] for row in centre.logged("line") if "records" in row}
    assert lines == {one.centre_path: pytest.approx(5, abs=1), two.centre_path: pytest.approx(5, abs=1)}


def test_what_connections_counted_stays_when_they_have_ended(centre):
    for sequence in (1, 2):
        with closing(centre.tcp_device(2)) as device:
            deliver(device, latent_record(device=2, sequence=sequence))
        wait_until(lambda n=sequence: len(centre.logged("line_down")) == n, PATIENCE_S, "the end")
    counts = centre.gateway.counts()
    assert counts["tcp"]["records"] == 2
    assert counts["listener"]["admitted"] == 2


def test_two_devices_on_one_line_are_told_apart_by_their_secrets(tmp_path):
    """A radio that carries several devices: each is who its MAC says."""
    with EmulatedSerial() as line, GatewayCentre(tmp_path, [line.centre_path]) as centre:
        for device in (0, 3):
            with closing(centre.serial_device(device, line.device_path)) as link:
                assert deliver(link, latent_record(device=device)).device == device
    assert sorted(centre.kept()) == [(0, 1), (3, 1)]


def test_a_port_that_vanishes_and_comes_back_under_its_name_is_served_again(tmp_path):
    name = tmp_path / "ttyUSB7"

    def plug_in() -> tuple[int, str]:
        master, slave = pty.openpty()
        tty.setraw(slave)
        path = os.ttyname(slave)
        os.close(slave)
        name.unlink(missing_ok=True)
        name.symlink_to(path)
        return master, path

    with GatewayCentre(tmp_path, [str(name)]) as centre:
        wait_until(lambda: centre.logged("line_down"), what="complaint about a port that is not there")
        for sequence in (1, 2, 3):
            master, _ = plug_in()
            wait_until(lambda n=sequence: len(centre.logged("line_open")) == n, PATIENCE_S, "the port")
            os.write(master, b"\x03torn" + b"\0" + centre.frame(latent_record(device=1, sequence=sequence)))
            found = centre.answers(1)
            while not (records := found.feed(os.read(master, 4096))):
                pass
            assert packet.decode_record(records[0]).sequence == sequence
            os.close(master)
            name.unlink()
            wait_until(
                lambda n=sequence: len(centre.logged("line_down")) > n, PATIENCE_S, "notice that it is gone"
            )
        assert len(centre.kept()) == 3
    # Tried many times, complained about once for each reason.
    assert len(centre.logged("line_down")) <= 7


@pytest.mark.parametrize("claim", [{"device": 1}, {"device": 0, "survey": 2}])
def test_a_record_that_claims_another_device_than_its_mac_is_not_let_in(centre, claim):
    with connect(centre) as connection:
        connection.sendall(centre.frame(latent_record(**claim), device=0))
        wait_until(lambda: centre.listener["unauthentic"] == 1, what="the count")
        # Neither is it once the connection is known to be an honest device's.
        connection.sendall(centre.frame(latent_record(device=0)))
        assert hear(connection, centre.answers(0)).type == packet.ACK
        connection.sendall(centre.frame(latent_record(sequence=2, **claim), device=0))
        connection.sendall(centre.frame(latent_record(device=0, sequence=3)))
        assert hear(connection, centre.answers(0)).sequence == 3
    assert sorted(centre.kept()) == [(0, 1), (0, 3)]
    row = wait_until(lambda: counted(centre, records=2), what="the line's count")
    assert row["unauthentic"] == 1


def test_a_record_sealed_with_no_known_secret_or_none_is_not_let_in(centre):
    from firmware_py.protocol.frame_authenticator import UPLINK, Mac
    from firmware_py.protocol.framing import encode_frame

    data = packet.encode_record(latent_record(device=0))
    with connect(centre) as connection:
        connection.sendall(encode_frame(data, Mac(bytes(32), UPLINK)) + encode_frame(data))
        wait_until(lambda: centre.listener["unauthentic"] + centre.listener["damaged"] == 2, what="the count")
    assert centre.kept() == []


def test_a_record_played_again_is_answered_and_not_stored_again(centre):
    heard_on_the_way = centre.frame(latent_record(device=4))
    for _ in range(3):
        with connect(centre) as connection:
            connection.sendall(heard_on_the_way)
            answer = hear(connection, centre.answers(4))
            assert (answer.type, answer.sequence) == (packet.ACK, 1)
    assert centre.kept() == [(4, 1)]
    assert centre.receiver.counts["duplicates"] == 2


def test_an_answer_played_back_is_no_record(centre):
    found = centre.answers(4)
    with connect(centre) as connection:
        connection.sendall(centre.frame(latent_record(device=4)))
        answer = b""
        while not found.feed(heard := connection.recv(4096)):
            answer += heard
        connection.sendall(answer + heard)
        connection.sendall(centre.frame(latent_record(device=4, sequence=2)))
        assert hear(connection, found).sequence == 2
    row = wait_until(lambda: counted(centre, records=2), what="the line's count")
    assert row["unauthentic"] == 1


@pytest.mark.parametrize(
    ("noise", "damaged"),
    [
        (b"\x05hello?\0", 1),
        (b"\x01" * 200_000 + b"\0", 1),
        (b"\0\0\0", 0),
        (bytes(range(256)) * 8 + b"\0", 8),
    ],
    ids=["garbage", "endless", "zeros", "ramps"],
)
def test_after_noise_the_next_frame_counts(centre, noise, damaged):
    with connect(centre) as connection:
        connection.sendall(centre.frame(latent_record(device=0)))
        found = centre.answers(0)
        assert hear(connection, found).sequence == 1
        connection.sendall(noise + centre.frame(latent_record(device=0, sequence=2)))
        assert hear(connection, found).sequence == 2
    row = wait_until(lambda: counted(centre, records=2), what="the line's count")
    assert row["damaged"] + row["unauthentic"] == damaged


def test_a_right_withdrawn_holds_on_a_line_that_is_open(centre):
    with connect(centre) as connection:
        found = centre.answers(1)
        connection.sendall(centre.frame(latent_record(device=1)))
        assert hear(connection, found).sequence == 1
        keys.revoke(centre.keys, "device-1")
        for sequence in range(2, 200):
            connection.sendall(centre.frame(latent_record(device=1, sequence=sequence)))
            connection.settimeout(0.2)
            try:
                hear(connection, found)
            except TimeoutError:
                break
        else:
            pytest.fail("still answered")
        last = max(sequence for _, sequence in centre.kept())
        for later in range(sequence, sequence + 20):
            connection.sendall(centre.frame(latent_record(device=1, sequence=later)))
        with closing(centre.tcp_device(0)) as other:
            deliver(other, latent_record(device=0))
        assert max(sequence for device, sequence in centre.kept() if device == 1) == last
        # Let in again, the same connection goes on.
        keys.allow(centre.keys, "device-1")
        connection.settimeout(PATIENCE_S)
        with closing(centre.tcp_device(1)) as again:
            assert deliver(again, latent_record(device=1, sequence=sequence)).type == packet.ACK


def test_who_reads_no_answers_gets_few_and_holds_up_nobody(tmp_path):
    """600 refusals of 210 bytes are more than a line keeps for a peer that does not read."""
    masters, paths = [], []
    for _ in range(2):
        master, slave = pty.openpty()
        tty.setraw(slave)
        masters.append(master)
        paths.append(os.ttyname(slave))
    with GatewayCentre(tmp_path, paths, baud=4_000_000) as centre:
        wait_until(lambda: len(centre.logged("line_open")) == 2, what="both ports")
        for sequence in range(1, 601):
            unknown = latent_record(device=0, sequence=sequence, model_hash=OTHER_HASH)
            os.write(masters[0], centre.frame(unknown))
            wait_until(lambda n=sequence: centre.receiver.counts["refused"] == n, PATIENCE_S, "the refusal")
        os.write(masters[1], centre.frame(latent_record(device=1)))
        found = centre.answers(1)
        while not found.feed(os.read(masters[1], 4096)):
            pass
        # What it does read at last is whole, and from then on it is answered.
        found, answers = centre.answers(0), []
        os.write(masters[0], centre.frame(latent_record(device=0, sequence=900)))
        while not any(answer.sequence == 900 for answer in answers):
            answers += map(packet.decode_record, found.feed(os.read(masters[0], 4096)))
        assert found.damaged_frames + found.unauthentic_frames == 0
        assert 1 < len(answers) < 600
    rows = {row["name"]: row for row in centre.logged("line")}
    assert rows[paths[0]]["answers_unread"] > 0
    for master in masters:
        os.close(master)


def test_when_all_places_are_taken_the_quietest_makes_room(centre, monkeypatch):
    monkeypatch.setattr(gateway, "MAX_CONNECTIONS", 2)
    held = [connect(centre) for _ in range(2)]
    for device, connection in enumerate(held):
        connection.sendall(centre.frame(latent_record(device=device)))
        hear(connection, centre.answers(device))
    held[0].sendall(centre.frame(latent_record(device=0, sequence=2)))
    hear(held[0], centre.answers(0))
    with connect(centre) as newcomer:
        newcomer.sendall(centre.frame(latent_record(device=2)))
        assert hear(newcomer, centre.answers(2)).type == packet.ACK
        assert held[1].recv(4096) == b"", "the connection that was quiet the longest is ended"
        held[0].sendall(centre.frame(latent_record(device=0, sequence=3)))
        assert hear(held[0], centre.answers(0)).sequence == 3
    assert any("room" in row["reason"] for row in centre.logged("line_down"))
    for connection in held:
        connection.close()


def test_a_record_played_again_takes_a_place_from_its_own_device_alone(centre, monkeypatch):
    monkeypatch.setattr(gateway, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(gateway, "DEVICE_CONNECTIONS", 2)
    held = [connect(centre) for _ in range(3)]
    captured = centre.frame(latent_record(device=0))
    for device, connection in enumerate(held):
        connection.sendall(captured if device == 0 else centre.frame(latent_record(device=device)))
        hear(connection, centre.answers(device))
    played = []
    for _ in range(4):
        played.append(connect(centre))
        played[-1].sendall(captured)
        assert hear(played[-1], centre.answers(0)).type == packet.ACK
        if len(played) == 1:
            held[0].sendall(centre.frame(latent_record(device=0, sequence=2)))
            assert hear(held[0], centre.answers(0)).sequence == 2, "once played, it ends nobody's connection"
    assert [connection.recv(1) for connection in (held[0], *played[:2])] == [b""] * 3
    for device in (1, 2):
        held[device].sendall(centre.frame(latent_record(device=device, sequence=2)))
        assert hear(held[device], centre.answers(device)).sequence == 2
    assert {row["reason"] for row in centre.logged("line_down")} == {"its device has come anew"}
    for connection in (*held, *played):
        connection.close()


def test_with_no_file_left_a_device_is_sent_away_and_the_gateway_goes_on(centre):
    frame = centre.frame(latent_record(device=2))
    with connect(centre) as connection:
        wait_until(lambda: centre.listener["connections"] == 1, what="the connection")
        with no_file_left():
            connection.sendall(frame)
            assert connection.recv(1) == b""
    with closing(centre.tcp_device(2)) as again:
        assert deliver(again, latent_record(device=2)).type == packet.ACK


def test_what_a_checksum_alone_lets_in_need_be_no_record(tmp_path):
    """Without keys the listener has no way to tell peers apart: it admits all."""
    from firmware_py.links.zeromq import ZmqLink
    from firmware_py.protocol.framing import encode_frame

    log = Log(tmp_path / "log.jsonl")
    context = zmq.Context()
    section = GatewaySection(tcp="127.0.0.1:0")
    served = Gateway(
        section, FrameAuthenticators(None), lambda: ZmqLink("inproc://centre", context=context), log
    )
    stop = threading.Event()
    running = threading.Thread(target=served.run, args=(stop.is_set,))
    running.start()
    host, port = served.listener.endpoint.split(":")
    for n in (1, 2):
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(encode_frame(b"no record"))
            wait_until(lambda n=n: served.listener.counts["admitted"] == n, PATIENCE_S, "a line of its own")
    stop.set()
    running.join()
    context.term()


SILENCE = """
import socket, sys
host, port, source, n = sys.argv[1:]
silent = [socket.create_connection((host, int(port)), source_address=(source, 0)) for _ in range(int(n))]
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"], ids=["same-address", "another-address"])
def test_a_thousand_connections_that_say_nothing_keep_nobody_out(centre, source):
    flood = [sys.executable, "-c", SILENCE, *centre.endpoint.split(":"), source, "1000"]
    with closing(centre.tcp_device(0)) as early:
        deliver(early, latent_record(device=0))
        with subprocess.Popen(flood, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            sequences = itertools.count(2)
            while centre.listener["connections"] < 1000:
                # One that was there before, and one that comes in the middle of it.
                sequence = next(sequences)
                deliver(early, latent_record(device=0, sequence=sequence))
                with closing(centre.tcp_device(1)) as late:
                    deliver(late, latent_record(device=1, sequence=sequence))
            assert process.stdout.readline() == b"open\n"
            process.stdin.close()
    assert len(centre.kept()) == 2 * sequence - 1
    assert centre.listener["evicted"] > 400
    gone = ("admitted", "evicted", "timed_out", "left")
    wait_until(
        lambda: sum(centre.listener[name] for name in gone) == centre.listener["connections"],
        PATIENCE_S,
        "the account",
    )


def test_a_gateway_that_cannot_reach_out_ends_with_its_error(tmp_path):
    def no_link():
        raise LinkError("link: cannot use endpoint")

    broken = Gateway(
        GatewaySection(ports=["/dev/none"]), FrameAuthenticators(None), no_link, Log(tmp_path / "log.jsonl")
    )
    with pytest.raises(LinkError, match="cannot use endpoint"):
        broken.run(lambda: False)
