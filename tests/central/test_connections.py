"""Rejected connections are counted, and many of them do not hold up the receiver."""

import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import zmq

from central.ingest import connections
from central.ingest.connections import Connections
from firmware_py.runtime.log import Log

PATIENCE_S = 60.0


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.jsonl")


class EndlessMonitor:
    """A connection comes whenever it is asked."""

    asked = 0

    def poll(self, timeout_ms):
        self.asked += 1
        assert self.asked < 100_000, "whoever reads all of it reads for ever"
        return True

    def recv_multipart(self):
        return [zmq.EVENT_ACCEPTED.to_bytes(2, sys.byteorder) + bytes(4), b"tcp://127.0.0.1:5557"]


class EndlessRouter:
    def get_monitor_socket(self, events):
        return EndlessMonitor()


def test_connections_without_end_do_not_hold_up_the_receiver(tmp_path, log, monkeypatch):
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.0)
    counts = Counter()
    following = Connections(EndlessRouter(), counts, log)
    following.follow()
    following.follow()
    assert counts["auth_rejected"] == counts["connections"] == 2 * connections.EVENTS_AT_ONCE
    said = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["message"], row["connections"]) for row in said] == [
        ("auth_rejected", connections.EVENTS_AT_ONCE)
    ]


class Script:
    """A monitor and its router: the events that are put into it."""

    def __init__(self):
        self.events = []

    def get_monitor_socket(self, events):
        return self

    def poll(self, timeout_ms):
        return len(self.events)

    def recv_multipart(self):
        event = self.events.pop(0)
        return [event.to_bytes(2, sys.byteorder) + bytes(4), b"tcp://127.0.0.1:5557"]


def test_a_handshake_in_progress_is_not_logged_as_rejected(tmp_path, log, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    script = Script()
    following = Connections(script, Counter(), log)

    def follow(at_s, *events):
        now_s[0] = at_s
        script.events = list(events)
        following.follow()
        return [json.loads(line)["connections"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    # Two devices connect; their handshakes succeed a second later.
    assert follow(0.0, zmq.EVENT_ACCEPTED, zmq.EVENT_ACCEPTED) == []
    assert follow(1.0, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_SUCCEEDED) == []
    assert follow(10.0) == []
    # A stranger is never admitted.
    assert follow(11.0, zmq.EVENT_ACCEPTED) == []
    assert follow(14.0) == [1]


# In a process of its own: one that hangs there is past being told anything.
CROWD = """
import socket, sys
from collections import Counter
import zmq
from central.ingest.connections import Connections
from firmware_py.runtime.log import Log

context = zmq.Context()
# Fewer fill it.
context.rcvhwm = 1
router = context.socket(zmq.ROUTER)
connections = Connections(router, Counter(), Log(None))
port = router.bind_to_random_port("tcp://127.0.0.1")
try:
    for _ in range(10_000):
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
except TimeoutError:
    print("nobody more is let in", flush=True)
connections.close()
router.close(0)
context.term()
print("closed")
"""


def test_a_crowd_that_nobody_has_counted_does_not_hold_up_the_end():
    """ZeroMQ's own thread waits, with a lock, for room for one more event."""
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split("\n")[:2] == ["nobody more is let in", "closed"], done.stderr
