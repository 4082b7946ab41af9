"""The TCP listener without free file descriptors; its admission of devices is in test_gateway.py."""

import contextlib
import resource
import socket
import sys
import time

import pytest
from file_limit import no_file_left

from central.gateway import listener as listener_module
from central.gateway.listener import TcpListener
from firmware_py.protocol.frame_authenticator import Crc
from firmware_py.protocol.framing import encode_frame
from firmware_py.runtime.log import Log

FILE_LIMIT, _ = resource.getrlimit(resource.RLIMIT_NOFILE)


class Watch:
    """``time`` whose sleeps are counted and cost none."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self):
        self.slept_s = []

    def sleep(self, seconds):
        self.slept_s.append(seconds)


@pytest.mark.parametrize("waiting", [1, 0])
def test_with_no_file_left_who_waits_makes_room_and_if_nobody_does_it_tries_again_later(
    tmp_path, monkeypatch, waiting
):
    watch = Watch()
    monkeypatch.setattr(listener_module, "time", watch)
    # What is not imported yet cannot be read then.
    monkeypatch.delitem(sys.modules, "heapq")
    listener = TcpListener("127.0.0.1:0", Crc().open, Log(tmp_path / "log.jsonl"))
    host, port = listener.endpoint.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(waiting)]
    late = socket.socket()
    frame = encode_frame(b"record", Crc())
    admitted = []
    limit = contextlib.ExitStack()

    def knock():
        limit.enter_context(no_file_left())
        late.connect((host, int(port)))
        late.sendall(frame)

    steps = [("connections", waiting, knock), ("not_accepted", 5, limit.close)]
    turns = iter(range(1000))

    def stopping():
        assert next(turns, None) is not None, "it came to nothing"
        if steps and listener.counts[steps[0][0]] == steps[0][1]:
            steps.pop(0)[2]()
        return bool(admitted)

    with limit:
        listener.run(stopping, lambda pending, records: admitted.append((pending, records)))
    ((pending, records),) = admitted
    pending.port.close()
    assert records == [b"record"]
    assert listener.counts["evicted"] == waiting
    assert [connection.recv(1) for connection in silent] == [b""] * waiting
    assert watch.slept_s == ([] if waiting else [listener_module.POLL_S] * 5)
    for connection in (*silent, late):
        connection.close()


@pytest.mark.parametrize(("bound", "value"), [("MAX_WAITING", 3), ("WAITING_SHARE", FILE_LIMIT // 3)])
def test_the_address_with_most_connections_gives_up_its_oldest(tmp_path, monkeypatch, bound, value):
    monkeypatch.setattr(listener_module, bound, value)
    listener = TcpListener("127.0.0.1:0", Crc().open, Log(tmp_path / "log.jsonl"))
    host, port = listener.endpoint.split(":")
    sources = ["127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.4"]
    came = []
    gone = []
    turns = iter(range(50))

    def stopping():
        assert next(turns, None) is not None, "nothing was evicted"
        if len(came) < len(sources) and listener.counts["connections"] == len(came):
            came.append(socket.create_connection((host, int(port)), source_address=(sources[len(came)], 0)))
            came[-1].setblocking(False)
        if listener.counts["evicted"]:
            gone.extend(number for number, one in enumerate(came) if is_over(one))
        return bool(gone)

    listener.run(stopping, pytest.fail)
    assert gone == [1]
    for connection in came:
        connection.close()


def is_over(connection):
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
