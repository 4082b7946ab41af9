"""What systemd hears of a device: a real datagram socket in its place, and a device whose loop is stuck."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_until

from firmware_py.runtime.config import load_config
from firmware_py.runtime.node import Node
from firmware_py.runtime.sd_notify import Supervisor
from firmware_py.sources.recordings import FolderSource

pytestmark = pytest.mark.slow


class Systemd:
    """The receiving end of $NOTIFY_SOCKET; ``address`` is what the variable holds."""

    def __init__(self, address):
        self.address = str(address)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self.socket.setblocking(False)

    def heard(self):
        """What has come since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "path with @", "abstract"])
def systemd(request, tmp_path):
    names = {
        "path": tmp_path / "notify",
        "path with @": tmp_path / "epic@1.service",
        "abstract": f"@epic-test-{os.getpid()}/notify",
    }
    end = Systemd(names[request.param])
    yield end
    end.socket.close()


def test_it_says_ready_once_and_alive_four_times_in_the_time_allowed(systemd):
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "8000000"})
    assert systemd.heard() == [], "not before the loop runs"
    supervisor.alive(100.0)
    assert systemd.heard() == ["READY=1", "WATCHDOG=1"]
    supervisor.alive(101.9)
    assert systemd.heard() == []
    for now_s in (102.0, 103.0, 104.0, 105.0, 106.0, 107.0):
        supervisor.alive(now_s)
    assert systemd.heard() == ["WATCHDOG=1"] * 3


def test_without_a_watchdog_it_says_ready_alone(systemd):
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.address})
    for now_s in (0.0, 1e3, 1e6):
        supervisor.alive(now_s)
    assert systemd.heard() == ["READY=1"]


def test_started_by_a_person_it_is_silent(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("opened a socket"))
    Supervisor({"WATCHDOG_USEC": "1000000"}).alive(0.0)


def test_what_did_not_get_through_is_said_again(tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
    supervisor = Supervisor(environment)
    supervisor.alive(0.0)
    end = Systemd(tmp_path / "notify")
    supervisor.alive(0.05)
    assert end.heard() == ["READY=1", "WATCHDOG=1"]
    end.socket.close()


def test_a_systemd_that_does_not_listen_never_holds_the_loop_up(tmp_path):
    end = Systemd(tmp_path / "notify")
    supervisor = Supervisor({"NOTIFY_SOCKET": end.address, "WATCHDOG_USEC": "4"})
    for now_s in range(2000):
        supervisor.alive(float(now_s))
    waiting = len(end.heard())
    assert 0 < waiting < 2000, "the socket was full, and the loop went on"
    supervisor.alive(2000.0)
    assert end.heard() == ["WATCHDOG=1"]
    end.socket.close()


@pytest.fixture
def config(tmp_path, bundle):
    """A device that watches a folder and whose centre is away."""
    path = tmp_path / "node.toml"
    path.write_text(
        '[node]\ndevice = 1\nbundle = "bundle"\n[link]\nendpoint = "tcp://127.0.0.1:9"\ninsecure = true\n'
        '[source]\nkind = "folder"\npath = "incoming"\n[run]\nlog = "node.jsonl"\n'
    )
    (tmp_path / "incoming").mkdir()
    return path


def test_a_device_whose_loop_is_stuck_is_given_up_by_the_watchdog(config, tmp_path, monkeypatch):
    """Though its other threads live on; and when the loop goes on, so do the signs of life."""
    end = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", end.address)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    poll, stuck, free, ended = FolderSource.poll, *(threading.Event() for _ in range(3))
    free.set()

    def sometimes_stuck(source):
        if not free.is_set():
            stuck.set()
            free.wait()
        return poll(source)

    def run():
        node = Node(load_config(config))
        threading.Thread(target=lambda: (ended.wait(), node.stop())).start()
        node.run()

    monkeypatch.setattr(FolderSource, "poll", sometimes_stuck)
    device = threading.Thread(target=run)
    device.start()
    try:
        wait_until(lambda: "WATCHDOG=1" in end.heard(), what="a sign of life")
        free.clear()
        assert stuck.wait(20.0)
        end.heard()
        # Five times as long as systemd would wait.
        time.sleep(1.0)
        assert end.heard() == []
        free.set()
        wait_until(lambda: "WATCHDOG=1" in end.heard(), what="a sign of life after it")
    finally:
        free.set()
        ended.set()
        device.join()
        end.socket.close()


def test_the_process_tells_systemd_when_it_is_ready_and_that_it_lives(config, tmp_path):
    end = Systemd(tmp_path / "notify")
    environment = {**os.environ, "NOTIFY_SOCKET": end.address, "WATCHDOG_USEC": "400000"}
    child = subprocess.Popen(
        [sys.executable, "-m", "firmware_py", "run", "--config", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    heard = []
    try:
        wait_until(lambda: heard.extend(end.heard()) or heard.count("WATCHDOG=1") > 3, 60.0, "signs of life")
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        end.socket.close()
    assert heard[0] == "READY=1" and heard.count("READY=1") == 1
