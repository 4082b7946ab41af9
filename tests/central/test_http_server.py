"""Silent, slow and non-reading connections: page and metrics still answer other peers."""

import asyncio
import resource
import socket
import threading
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest
from file_limit import no_file_left
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from waiting import wait_until

from central.config import CentralSection
from central.dashboard import http_server
from central.dashboard.metrics import MetricsServer, RuntimeMetrics, decode_histogram
from central.dashboard.server import PageServer
from firmware_py.runtime.log import Log

ASK = b"GET /small HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def _small(request):
    return PlainTextResponse("as ever")


async def _endless(request):
    async def chunks():
        while True:
            yield bytes(1 << 16)
            # Otherwise nothing ends it after the connection is closed.
            await asyncio.sleep(0)

    return StreamingResponse(chunks())


@pytest.fixture
def bounds(monkeypatch):
    """Short deadlines: 1 s for a request, 1 s without reading."""
    monkeypatch.setattr(http_server, "REQUEST_S", 1.0)
    monkeypatch.setattr(http_server, "UNREAD_S", 1.0)


@pytest.fixture
def no_deadline(monkeypatch):
    """Nothing but the cap closes a connection."""
    monkeypatch.setattr(http_server, "REQUEST_S", 600.0)


@pytest.fixture
def serve(monkeypatch):
    """Serves ``/small`` and ``/endless``; ``serve()`` returns the port."""
    with ExitStack() as stack:

        def start():
            listener = stack.enter_context(http_server.listen("127.0.0.1:0"))
            server = http_server.bounded_server(
                Starlette(routes=[Route("/small", _small), Route("/endless", _endless)])
            )
            thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
            thread.start()

            def end():
                server.should_exit = True
                thread.join(20)

            stack.callback(end)
            return listener.getsockname()[1]

        yield start


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(port):
    with connect(port) as peer:
        peer.sendall(ASK)
        return peer.recv(1 << 16)


def ended(peer):
    """Wait until the server closes the connection; return False if it does not."""
    try:
        while peer.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_connection_that_asks_for_nothing_is_closed(serve, bounds):
    port = serve()
    with closing(connect(port)) as silent, closing(connect(port)) as partial:
        partial.sendall(b"GET / HTTP/1.1\r\n")
        assert ended(silent) and ended(partial)


@pytest.mark.slow
def test_headers_that_come_a_byte_at_a_time_do_not_hold_a_connection(serve, bounds):
    """Also after an answered request, where uvicorn's own deadline ends with the first byte."""
    with closing(connect(serve())) as slow:
        slow.sendall(ASK)
        assert b"200 OK" in slow.recv(1 << 16)
        started_s = time.monotonic()
        with pytest.raises(OSError):
            for byte in ASK * 20:
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - started_s < 10


def test_a_peer_that_does_not_read_is_closed(serve, bounds):
    with closing(connect(serve())) as deaf:
        deaf.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: deaf.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 20, "the reset")


@pytest.mark.slow
def test_a_long_answer_that_is_read_goes_on_past_every_deadline(serve, bounds):
    with closing(connect(serve())) as reader:
        reader.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        end_s = time.monotonic() + 3.0
        while time.monotonic() < end_s:
            assert reader.recv(1 << 16)


def test_silent_connections_give_way_the_oldest_first(serve, no_deadline, monkeypatch):
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 5)
    port = serve()
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect(port))) for _ in range(5)]
        assert b"200 OK" in answer(port)
        assert ended(peers[0])
        peers[1].settimeout(0.2)
        assert not ended(peers[1]), "one gives way to one"


def test_without_a_free_file_it_waits_quietly_and_answers_once_there_is_one(serve, caplog):
    port = serve()
    assert b"200 OK" in answer(port)
    with socket.socket() as late:
        late.settimeout(20)
        with no_file_left():
            late.connect(("127.0.0.1", port))
            late.sendall(ASK)
            time.sleep(1.5 * http_server.NO_FILE_PAUSE_S)
        assert b"200 OK" in late.recv(1 << 16)
    assert not caplog.records, "asyncio writes a traceback for each attempt"


def test_a_small_file_limit_bounds_the_connections_too(serve, no_deadline, monkeypatch):
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(http_server, "CONNECTIONS_SHARE", limit // 3)
    port = serve()
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect(port))) for _ in range(4)]
        assert ended(peers[0])


def test_connections_at_work_are_kept_and_the_newcomer_is_closed(serve, no_deadline, monkeypatch):
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    port = serve()
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect(port))) for _ in range(2)]
        for peer in peers:
            peer.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert peer.recv(1)
        with closing(connect(port)) as newcomer:
            assert ended(newcomer)
        assert all(peer.recv(1 << 16) for peer in peers)


@pytest.mark.parametrize("what", ["page", "metrics"])
def test_the_page_and_the_metrics_answer_among_silent_connections(what, data_dir, tmp_path):
    """Three times as many as made every request answer 503."""
    with ExitStack() as stack:
        if what == "page":
            lines, stop = [], threading.Event()
            central = CentralSection(listen="tcp://127.0.0.1:1", data_dir=data_dir)
            page = PageServer(central, "127.0.0.1:0", Log(tmp_path / "page.jsonl"), None, lines.append)
            thread = threading.Thread(target=page.run, args=(stop,))
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(stop.set)
            wait_until(lambda: lines, 20, "the page")
            address = lines[0].split()[-1]
        else:
            live = RuntimeMetrics(Counter(), Counter(), int, dict, decode_histogram(), Counter())
            server = MetricsServer("127.0.0.1:0", data_dir, live)
            stack.callback(server.close)
            address = f"http://127.0.0.1:{server.port}/metrics"
        port = urlsplit(address).port
        peers = [stack.enter_context(closing(connect(port))) for _ in range(3 * http_server.MAX_CONNECTIONS)]
        with urllib.request.urlopen(address, timeout=20) as found:
            assert found.status == 200
        held = sum(not _at_end(peer) for peer in peers)
        assert held <= http_server.MAX_CONNECTIONS


def _at_end(peer):
    peer.setblocking(False)
    try:
        return not peer.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
