"""Names of hosts: looked up beside the loop, and one line for those that lead nowhere."""

import os
import socket
import threading
import time

import pytest
from waiting import wait_until

from firmware_py.links.port import PortError, TcpPort
from firmware_py.links.stream import StreamLink
from firmware_py.protocol.frame_authenticator import Crc

NAME = "gateway.field.example"
GETADDRINFO = socket.getaddrinfo


class Resolver:
    """``socket.getaddrinfo`` that keeps who asks for a name waiting until ``answer``."""

    def __init__(self, monkeypatch):
        self._answers = threading.Event()
        self._found = None
        self.asked = 0
        monkeypatch.setattr(socket, "getaddrinfo", self._ask)

    def _ask(self, host, port, *given, **more):
        if host != NAME or more.get("flags"):
            return GETADDRINFO(host, port, *given, **more)
        self.asked += 1
        assert self._answers.wait(20.0)
        if isinstance(self._found, OSError):
            raise self._found
        return GETADDRINFO(self._found, port, *given, **more)

    def answer(self, found):
        self._found = found
        self._answers.set()


@pytest.fixture
def resolver(monkeypatch):
    made = Resolver(monkeypatch)
    yield made
    made.answer(OSError("the test is over"))


def link_to(port):
    return StreamLink(lambda: TcpPort.connect(f"{NAME}:{port}"), Crc(), Crc())


def test_the_loop_goes_on_while_a_name_is_looked_up_and_connects_when_it_is_found(resolver):
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        gateway.settimeout(20.0)
        link = link_to(gateway.getsockname()[1])
        started_s = time.monotonic()
        for _ in range(5):
            link.send(b"record")
            assert link.receive(0.02) is None
        assert time.monotonic() - started_s < 2.0
        assert resolver.asked == 1
        resolver.answer("127.0.0.1")
        wait_until(lambda: link.receive(0.01) is None and link.send(b"another"), what="a connection")
        connection, _ = gateway.accept()
        link.receive(0.01)
        connection.settimeout(20.0)
        assert b"record" in connection.recv(4096)
        connection.close()
        link.close()


def test_a_name_that_is_not_found_is_a_fault_in_the_resolvers_words(resolver):
    link = link_to(5558)
    resolver.answer(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    wait_until(lambda: link.receive(0.01) is None and link.statistics.fault, what="the fault")
    assert link.statistics.fault == f"{NAME}:5558: Temporary failure in name resolution"
    link.close()


def test_every_address_of_a_name_is_tried(monkeypatch):
    """A name with an address of IPv6 first, and a gateway on IPv4 alone."""
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        gateway.settimeout(20.0)
        port = gateway.getsockname()[1]

        def both(host, *given, **more):
            if host != NAME or more.get("flags"):
                return GETADDRINFO(host, *given, **more)
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                *GETADDRINFO("127.0.0.1", port),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        link = link_to(port)
        wait_until(lambda: link.receive(0.01) is None and link.send(b"record"), what="a connection")
        gateway.accept()[0].close()
        assert link.statistics.connections == 1
        link.close()


def test_what_does_not_answer_is_no_connection():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    link = StreamLink(lambda: TcpPort.connect(f"127.0.0.1:{port}"), Crc(), Crc())
    wait_until(lambda: link.receive(0.01) is None and link.statistics.fault, what="the fault")
    assert link.statistics.connections == 0
    link.close()


def test_a_link_that_is_closed_meanwhile_leaves_no_file_behind(resolver):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    link = link_to(5558)
    assert link.receive(0.01) is None
    link.close()
    resolver.answer("127.0.0.1")
    wait_until(lambda: open_files() == before, what="the end of the thread")


@pytest.mark.parametrize("host", ["gateway..lan", ".lan", "x" * 70 + ".lan"])
def test_what_can_be_no_name_is_one_line(host):
    with pytest.raises(PortError, match=rf"^{host}:5558: no name of a host .*; mend \[link\] endpoint$"):
        TcpPort.connect(f"{host}:5558")
