"""The ZeroMQ link: whole records, no blind queueing, honest byte counts."""

import pytest
import zmq
from waiting import wait_until
from wire import CountingProxy

from firmware_py.link import LinkError
from firmware_py.link_zmq import ZmqLink, frame_bytes


@pytest.fixture
def router():
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind("tcp://127.0.0.1:*")
    yield socket
    socket.close()
    context.term()


def port_of(socket) -> int:
    return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])


def test_records_pass_whole_both_ways_and_bytes_are_those_on_the_wire(router):
    """Handshake, long and short frames: counted exactly as a proxy on the line counts them."""
    proxy = CountingProxy(port_of(router))
    link = ZmqLink(f"tcp://127.0.0.1:{proxy.port}", "epic-3")
    records = [b"x" * 166, b"y" * 300, b"z" * 255, b""]
    for record in records:
        wait_until(lambda record=record: link.send(record), what="a connection")
    for record in records:
        peer, body = router.recv_multipart()
        assert (peer, body) == (b"epic-3", record)
        router.send_multipart([peer, body[::-1]])
    assert [link.receive(5.0) for _ in records] == [record[::-1] for record in records]
    assert link.receive(0.05) is None
    counted = link.statistics
    assert (counted.records_sent, counted.records_received) == (4, 4)
    wait_until(lambda: proxy.up_bytes == counted.bytes_sent, 2.0, f"{counted} against {proxy.up_bytes} up")
    wait_until(lambda: proxy.down_bytes == counted.bytes_received, 2.0, f"{counted}, {proxy.down_bytes} down")
    link.close()
    proxy.close()


def test_nothing_is_queued_for_a_centre_that_is_not_there():
    link = ZmqLink("tcp://127.0.0.1:9", "epic-1")
    assert not link.send(b"record")
    assert link.receive(0.01) is None
    assert link.statistics.records_sent == 0
    link.close()


def test_a_centre_that_reads_nothing_is_noticed_within_a_bounded_queue(router):
    link = ZmqLink(router.getsockopt_string(zmq.LAST_ENDPOINT), "epic-1")
    wait_until(lambda: link.send(b"first"), what="a connection")
    sent = 1
    while sent < 100_000 and link.send(bytes(20_000)):
        sent += 1
    assert sent < 5_000
    link.close()


def test_an_endpoint_that_is_none():
    with pytest.raises(LinkError, match="expected tcp://host:port"):
        ZmqLink("wifi", "epic-1")


def test_frame_sizes_are_zmtps():
    assert [frame_bytes(n) for n in (0, 255, 256)] == [2, 257, 265]
