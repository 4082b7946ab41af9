"""The ZeroMQ link: whole records, no blind queueing, honest byte counts."""

import errno
from contextlib import closing

import pytest
import zmq
from file_limit import no_file_left
from waiting import wait_until
from wire import CountingProxy
from zmq.auth.thread import ThreadAuthenticator

from firmware_py.links import zeromq
from firmware_py.links.base import LinkError
from firmware_py.links.keys import CurveKeys, read_curve_keys, read_secret
from firmware_py.links.zeromq import ZmqLink, frame_bytes
from testbed.emulation.proxy import Proxy

CENTRE_PUBLIC, CENTRE_SECRET = zmq.curve_keypair()
DEVICE_PUBLIC, DEVICE_SECRET = zmq.curve_keypair()


def make_router(context, secret=None, endpoint="tcp://127.0.0.1:*"):
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    if secret:
        socket.curve_server = True
        socket.curve_secretkey = secret
    socket.bind(endpoint)
    return socket


@pytest.fixture
def router():
    context = zmq.Context()
    socket = make_router(context)
    yield socket
    socket.close()
    context.term()


@pytest.fixture
def secure_router():
    context = zmq.Context()
    socket = make_router(context, CENTRE_SECRET)
    yield socket
    socket.close()
    context.term()


def port_of(socket) -> int:
    return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])


@pytest.mark.parametrize("curve", [None, CurveKeys(CENTRE_PUBLIC, DEVICE_PUBLIC, DEVICE_SECRET)])
def test_records_pass_whole_both_ways_and_bytes_are_those_on_the_wire(curve, request):
    """Handshake, long and short frames: counted exactly as a proxy on the line counts them."""
    router = request.getfixturevalue("secure_router" if curve else "router")
    proxy = CountingProxy(port_of(router))
    link = ZmqLink(f"tcp://127.0.0.1:{proxy.port}", curve)
    records = [b"x" * 166, b"y" * 300, b"z" * 255, b"w" * 223, b""]
    for record in records:
        wait_until(lambda record=record: link.send(record), what="a connection")
    for record in records:
        peer, body = router.recv_multipart()
        assert body == record
        router.send_multipart([peer, body[::-1]])
    assert [link.receive(5.0) for _ in records] == [record[::-1] for record in records]
    assert link.receive(0.05) is None
    counted = link.statistics
    assert (counted.records_sent, counted.records_received) == (5, 5)
    wait_until(lambda: proxy.up_bytes == counted.bytes_sent, 2.0, f"{counted} against {proxy.up_bytes} up")
    wait_until(lambda: proxy.down_bytes == counted.bytes_received, 2.0, f"{counted}, {proxy.down_bytes} down")
    link.close()
    proxy.close()


def test_a_centre_with_another_key_gets_nothing(secure_router):
    stranger, _ = zmq.curve_keypair()
    link = ZmqLink(
        f"tcp://127.0.0.1:{port_of(secure_router)}",
        CurveKeys(stranger, DEVICE_PUBLIC, DEVICE_SECRET),
    )
    monitor = secure_router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert monitor.poll(5000), "the device connected"
    assert not link.send(b"record")
    assert link.receive(0.2) is None
    assert not link.send(b"record")
    link.close()
    monitor.close()
    endpoint = secure_router.getsockopt_string(zmq.LAST_ENDPOINT)
    assert link.statistics.fault == (
        f"{endpoint}: no connection; is the centre there, and does it allow this key?"
    )


def write_keys(folder, server=CENTRE_PUBLIC, public=DEVICE_PUBLIC, secret=DEVICE_SECRET):
    paths = [folder / name for name in ("server.key", "device.key", "device.secret")]
    for path, key in zip(paths, (server, public, secret), strict=True):
        path.write_bytes(key + b"\n")
    paths[2].chmod(0o600)
    return paths


def test_keys_from_files(tmp_path):
    assert read_curve_keys(*write_keys(tmp_path)) == CurveKeys(CENTRE_PUBLIC, DEVICE_PUBLIC, DEVICE_SECRET)


@pytest.mark.parametrize(
    "bad",
    [b"", b"short", b"~" * 40, b"#" * 40, b"\xff" * 40, CENTRE_PUBLIC * 2],
    ids=["empty", "short", "tildes", "hashes", "not ascii", "twice"],
)
def test_a_file_that_is_no_key(tmp_path, bad):
    with pytest.raises(LinkError, match=r"server.key: expected a CURVE key of 40 Z85 characters"):
        read_curve_keys(*write_keys(tmp_path, server=bad))


def test_keys_that_are_no_pair_or_not_there(tmp_path):
    paths = write_keys(tmp_path, public=CENTRE_PUBLIC)
    with pytest.raises(LinkError, match=r"device.key: not the public key of .*device.secret"):
        read_curve_keys(*paths)
    paths[2].unlink()
    with pytest.raises(LinkError, match=r"device.secret: cannot be read \(No such file"):
        read_curve_keys(*paths)


def test_a_secret_key_that_others_may_read(tmp_path):
    paths = write_keys(tmp_path)
    paths[2].chmod(0o640)
    with pytest.raises(LinkError, match="chmod 600"):
        read_curve_keys(*paths)


def test_a_mac_secret_from_its_file(tmp_path):
    path = tmp_path / "device-3.mac"
    with pytest.raises(LinkError, match="cannot be read"):
        read_secret(path)
    for bad in ("", "zz", "00" * 31):
        path.write_text(bad)
        path.chmod(0o600)
        with pytest.raises(LinkError, match="expected 32 bytes in hex"):
            read_secret(path)
    path.write_text("ab" * 32 + "\n")
    assert read_secret(path) == b"\xab" * 32
    path.chmod(0o604)
    with pytest.raises(LinkError, match="chmod 600"):
        read_secret(path)


def test_nothing_is_queued_for_a_centre_that_is_not_there():
    link = ZmqLink("tcp://127.0.0.1:9")
    assert not link.send(b"record")
    assert link.receive(0.01) is None
    assert link.statistics.records_sent == 0
    link.close()


def test_a_key_that_is_not_allowed_is_told_from_a_centre_that_is_not_there(monkeypatch):
    monkeypatch.setattr("firmware_py.links.zeromq.REOPEN_MIN_S", 0.1)
    context = zmq.Context()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    allowed = []
    authenticator.configure_curve_callback(
        credentials_provider=type("Credentials", (), {"callback": lambda self, domain, key: key in allowed})()
    )
    router = make_router(context, CENTRE_SECRET)
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    with closing(ZmqLink(endpoint, CurveKeys(CENTRE_PUBLIC, DEVICE_PUBLIC, DEVICE_SECRET))) as link:

        def told():
            assert link.receive(0.01) is None
            return link.statistics.key_rejected

        wait_until(told, what="the reason")
        for _ in range(50):
            assert told(), "also while it tries again"
        assert "the centre does not allow this key" in link.statistics.fault
        allowed.append(DEVICE_PUBLIC)
        wait_until(lambda: not told(), what="the connection")
        assert link.statistics.fault == ""
    authenticator.stop()
    context.destroy(linger=0)


@pytest.mark.parametrize("curve", [None, CurveKeys(CENTRE_PUBLIC, DEVICE_PUBLIC, DEVICE_SECRET)])
def test_a_link_says_that_it_is_down_until_it_is_not(curve):
    context = zmq.Context()
    secret = CENTRE_SECRET if curve else None
    router = make_router(context, secret)
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    router.close()
    with closing(ZmqLink(endpoint, curve)) as link:

        def fault():
            assert link.receive(0.01) is None
            return link.statistics.fault

        try:
            said = wait_until(fault, what="a fault")
            assert said.startswith(f"{endpoint}: no connection; is the centre there")
            assert ("allow this key" in said) is bool(curve)
            router = make_router(context, secret, endpoint)
            wait_until(lambda: not fault(), what="a connection")
            router.close()
            wait_until(fault, what="the connection's end")
        finally:
            context.destroy(linger=0)


def test_a_centre_that_reads_nothing_is_noticed_within_a_bounded_queue(router):
    link = ZmqLink(router.getsockopt_string(zmq.LAST_ENDPOINT))
    wait_until(lambda: link.send(b"first"), what="a connection")
    sent = 1
    while sent < 100_000 and link.send(bytes(20_000)):
        sent += 1
    assert sent < 5_000
    link.close()


@pytest.mark.parametrize("curve", [None, CurveKeys(CENTRE_PUBLIC, DEVICE_PUBLIC, DEVICE_SECRET)])
def test_a_link_whose_bytes_made_no_sense_comes_back(curve, request):
    """After a protocol error ZeroMQ itself never connects again."""
    router = request.getfixturevalue("secure_router" if curve else "router")
    with Proxy(port_of(router)) as proxy:
        link = ZmqLink(f"tcp://127.0.0.1:{proxy.port}", curve)
        wait_until(lambda: link.send(b"before"), what="a connection")
        peer, _ = router.recv_multipart()
        proxy.down.bit_error_rate = 1.0
        router.send_multipart([peer, b"answer"])
        wait_until(lambda: proxy.connections == 0, what="the connection's end")
        proxy.down.bit_error_rate = 0.0

        def sent_again() -> bool:
            assert link.receive(0.01) is None
            return link.send(b"after")

        wait_until(sent_again, what="another connection")
        assert router.recv_multipart()[1] == b"after"
        link.close()


def test_a_link_that_cannot_be_opened_again_is_one_error(router, monkeypatch):
    with Proxy(port_of(router)) as proxy:
        link = ZmqLink(f"tcp://127.0.0.1:{proxy.port}")
        wait_until(lambda: link.send(b"before"), what="a connection")
        peer, _ = router.recv_multipart()

        def refuse(*_):
            raise zmq.ZMQError(errno.EMFILE)

        monkeypatch.setattr(zeromq, "open_dealer", refuse)
        proxy.down.bit_error_rate = 1.0
        router.send_multipart([peer, b"answer"])
        with pytest.raises(LinkError, match="cannot use endpoint .*Too many open files"):
            wait_until(lambda: link.receive(0.01), what="the error")
        link.close()


def test_an_endpoint_that_is_none():
    with pytest.raises(LinkError, match="expected tcp://host:port"):
        ZmqLink("wifi")


def test_where_no_file_is_left_a_link_is_one_error_and_nothing_stays_open():
    context = zmq.Context()
    with no_file_left(), pytest.raises(LinkError, match="Too many open files"):
        ZmqLink("tcp://127.0.0.1:5557", context=context)
    context.term()


def test_frame_sizes_are_zmtps():
    assert [frame_bytes(n) for n in (0, 255, 256)] == [2, 257, 265]
