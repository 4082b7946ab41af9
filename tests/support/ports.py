"""Ports of this machine that are free, and stay so until they are listened on."""

import random
import socket
from pathlib import Path

LOCAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A TCP port that nobody listens on, below those that the system gives to whoever connects: one of these may be
    somebody's outgoing connection by the time a test, or a centre that is started again, listens on it."""
    try:
        last = int(LOCAL_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        last = 32768
    for _ in range(1000):
        port = random.SystemRandom().randrange(max(1024, last - 20_000), last)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no free port among a thousand")
