"""The proxy passes bytes faithfully, and breaks connections as it is told."""

import contextlib
import socket
import threading
import time

import pytest
from waiting import wait_until

from testbed.emulation.proxy import Proxy

TIMEOUT_S = 20.0


@pytest.fixture
def server():
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        yield listener


@pytest.fixture
def proxy(server):
    with Proxy(server.getsockname()[1]) as proxy:
        yield proxy


@pytest.fixture
def connect(server, proxy):
    """Opens a connection through the proxy: ``near, far = connect()``."""
    with contextlib.ExitStack() as stack:

        def open_both() -> tuple[socket.socket, socket.socket]:
            near = socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT_S)
            stack.enter_context(near)
            far, _ = server.accept()
            stack.enter_context(far).settimeout(TIMEOUT_S)
            return near, far

        yield open_both


def receive(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := end.recv(count - len(data))):
        data += more
    return data


def is_silent(end: socket.socket) -> bool:
    end.settimeout(0.2)
    try:
        return end.recv(1) is None
    except TimeoutError:
        return True
    finally:
        end.settimeout(TIMEOUT_S)


def test_megabytes_pass_both_ways_unchanged(connect):
    near, far = connect()
    up, down = bytes(range(256)) * 8192, bytes(reversed(range(256))) * 8192
    senders = [threading.Thread(target=end.sendall, args=(data,)) for end, data in ((near, up), (far, down))]
    for sender in senders:
        sender.start()
    heard = []
    back = threading.Thread(target=lambda: heard.append(receive(near, len(down))))
    back.start()
    assert receive(far, len(up)) == up
    for thread in (*senders, back):
        thread.join(TIMEOUT_S)
    assert heard == [down]


def test_one_way_may_end_and_the_other_go_on(connect, proxy):
    near, far = connect()
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert receive(far, 100) == b"question", "up to the end"
    far.sendall(b"answer")
    far.shutdown(socket.SHUT_WR)
    assert receive(near, 100) == b"answer"
    wait_until(lambda: proxy.connections == 0, what="the end of the connection")


def test_a_cut_by_reset_is_an_error_at_both_ends(connect, proxy):
    ends = [*connect(), *connect()]
    wait_until(lambda: proxy.connections == 2, what="connections")
    assert proxy.cut() == 2
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    assert proxy.cut() == 0


def test_a_cut_by_fin_is_an_end_of_file_at_both_ends(connect, proxy):
    ends = connect()
    wait_until(lambda: proxy.connections, what="the connection")
    assert proxy.cut(fin=True) == 1
    assert [end.recv(1) for end in ends] == [b"", b""]
    assert proxy.connections == 0


def test_who_connects_after_a_cut_is_served(connect, proxy):
    connect()
    wait_until(lambda: proxy.connections, what="the connection")
    proxy.cut()
    near, far = connect()
    near.sendall(b"again")
    assert receive(far, 5) == b"again"


def test_a_reset_is_passed_on(connect, proxy):
    near, far = connect()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(ConnectionResetError):
        near.recv(1)


@pytest.mark.parametrize("how", ["refusing", "no target"])
def test_who_cannot_be_served_is_sent_away(connect, proxy, server, how):
    if how == "refusing":
        proxy.refusing = True
    else:
        server.close()
    # The reset may be there before the connection is told of.
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT_S) as near,
    ):
        near.recv(1)


def test_half_open_one_way_passes_and_the_other_is_lost(connect, proxy):
    near, far = connect()
    proxy.up.swallow = True
    near.sendall(b"lost")
    far.sendall(b"heard")
    assert receive(near, 5) == b"heard"
    assert is_silent(far)


def test_a_blackhole_accepts_and_says_nothing_of_who_has_gone(connect, proxy):
    proxy.up.swallow = proxy.down.swallow = True
    near, far = connect()
    near.sendall(b"lost")
    far.sendall(b"lost")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.close()
    assert is_silent(far)


def test_a_stream_with_a_hole_is_reset_when_it_could_go_on(connect, proxy):
    near, far = connect()
    proxy.up.swallow = True
    near.sendall(b"lost")
    assert is_silent(far)
    proxy.up.swallow = False
    near.sendall(b"later")
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_a_rate_and_a_delay_hold_each_way_on_its_own(connect, proxy):
    near, far = connect()
    proxy.up.rate_bytes_per_s, proxy.down.delay_s = 20_000, 0.3
    started_s = time.monotonic()
    near.sendall(bytes(6_000))
    assert len(receive(far, 6_000)) == 6_000
    # No sooner; how much later is the machine's load.
    assert time.monotonic() - started_s > 0.29
    started_s = time.monotonic()
    far.sendall(b"x")
    near.recv(1)
    assert time.monotonic() - started_s > 0.29


def test_a_slow_way_holds_the_sender_back(connect, proxy):
    near, _ = connect()
    proxy.up.rate_bytes_per_s = 1_000
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    near.settimeout(0.3)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 1 << 22:
            sent += near.send(bytes(4096))


def test_bit_errors_damage_one_way(connect, proxy):
    near, far = connect()
    proxy.up.bit_error_rate = 0.01
    near.sendall(bytes(10_000))
    wrong = sum(byte.bit_count() for byte in receive(far, 10_000))
    assert 500 < wrong < 1_100
    assert proxy.bit_errors == wrong
    far.sendall(bytes(1_000))
    assert receive(near, 1_000) == bytes(1_000)
