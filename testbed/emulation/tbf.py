"""Check the proxy's rate against the kernel's token bucket, `tbf` on a veth pair.

Both ends of the pair are in network namespaces of their own, so this machine's network is not touched. Only the rate is
compared, because a delay needs netem, which not every kernel has. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from testbed.emulation.links import LinkProfile, open_proxies
from testbed.errors import TestbedError

CLONE_NEWNET = 0x40000000
# Addresses from the benchmark block (RFC 2544).
NEAR, FAR = "198.18.0.1", "198.18.0.2"
# TCP payload of an Ethernet frame, and the frame size that tbf counts: + 20 IP, 32 TCP with time stamps, 14 Ethernet.
PAYLOAD_BYTES, FRAME_BYTES = 1448, 1514
# Two frames: the smallest possible bucket, so that no burst hides the rate.
BURST_BYTES = 2 * FRAME_BYTES
LASTS_S = 1.0
TIMEOUT_S = 30.0

Result = TypeVar("Result")


class TbfError(TestbedError, RuntimeError):
    """This machine cannot create a shaped veth pair; the message names what is missing."""


@dataclass(frozen=True)
class CrossCheck:
    """Payload bytes per second of one TCP stream: of the profile, through the proxy, through tbf."""

    link: str
    asked: float
    proxy: float
    tbf: float


def cross_check(profile: LinkProfile) -> CrossCheck:
    """Send for one second through the proxy and through tbf, towards the centre. Raises ``TbfError``."""
    rate = profile.rate_bytes_per_s(profile.up_bytes_per_s)
    if rate is None:
        raise TbfError(f"{profile.name} has no rate to be checked")
    size = int(LASTS_S * rate)
    with shaped_pair(rate) as (near, far):
        listener = _within(far, lambda: socket.create_server((FAR, 0)))
        with listener:
            port = listener.getsockname()[1]
            tbf = _stream(
                listener, lambda: _within(near, lambda: socket.create_connection((FAR, port))), size
            )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (proxy,) = open_proxies(profile, listener.getsockname()[1], 1)
        with proxy:
            ours = _stream(listener, lambda: socket.create_connection(("127.0.0.1", proxy.port)), size)
    return CrossCheck(profile.name, rate, ours, tbf)


@contextmanager
def shaped_pair(rate_bytes_per_s: float) -> Iterator[tuple[str, str]]:
    """Join two network namespaces by a veth pair whose first end sends at the given payload rate."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        raise TbfError("tbf: needs root and iproute2 (`ip` and `tc`)")
    near, far = f"epic-near-{os.getpid()}", f"epic-far-{os.getpid()}"
    frames_bits_per_s = round(8 * rate_bytes_per_s * FRAME_BYTES / PAYLOAD_BYTES)
    try:
        for name in (near, far):
            _run("ip", "netns", "add", name)
        # One frame per packet, as on a wire: the bucket is smaller than veth's offloaded packets.
        end = ("gso_max_segs", "1", "gso_max_size", "1514")
        _run(
            "ip", "-n", near, "link", "add", "near", *end, "type", "veth", "peer", "name", "far", "netns", far
        )
        for name, interface, address in ((near, "near", NEAR), (far, "far", FAR)):
            _run("ip", "-n", name, "address", "add", f"{address}/30", "dev", interface)
            _run("ip", "-n", name, "link", "set", interface, "up")
        shape = f"rate {frames_bits_per_s}bit burst {BURST_BYTES} limit {1 << 24}"
        _run(*f"tc -n {near} qdisc add dev near root tbf {shape}".split())
        yield near, far
    finally:
        for name in (near, far):
            with contextlib.suppress(TbfError):
                _run("ip", "netns", "delete", name)


def _stream(listener: socket.socket, connect: Callable[[], socket.socket], size: int) -> float:
    """Send ``size`` bytes to the listener; return bytes per second from the first to the last arrival."""
    listener.settimeout(TIMEOUT_S)
    with connect() as near, listener.accept()[0] as far:
        far.settimeout(TIMEOUT_S)
        sender = threading.Thread(target=near.sendall, args=(bytes(size),), daemon=True)
        sender.start()
        first = len(far.recv(1 << 16))
        started_s = time.monotonic()
        left = size - first
        while left:
            left -= len(far.recv(min(left, 1 << 16)))
        took_s = time.monotonic() - started_s
        sender.join(TIMEOUT_S)
    return (size - first) / took_s


def _within(namespace: str, make: Callable[[], Result]) -> Result:
    """Call ``make`` in a network namespace; a socket stays in the namespace that it was created in."""

    def enter() -> Result:
        with open(f"/run/netns/{namespace}", "rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise TbfError(f"tbf: cannot enter {namespace} ({os.strerror(ctypes.get_errno())})")
        return make()

    # Only this thread enters the namespace, and it ends afterwards.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TbfError(f"tbf: `{' '.join(command[:6])} ...`: {said}")
