"""How true the emulated links are: rate and delay through a proxy, against what the profile says.

    python benchmarks/robustness/links.py [--links lte,wifi] [--seconds 2] [--messages 50] [--json]

Rate: a stream that lasts about so many seconds. Delay: messages of 170 bytes, one at a time, so that nothing
queues; the profile's jitter is taken off. Goals: rate within 5 %, delay within 2 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import time

from testbed.emulation.links import LinkProfile, find_link, open_proxies

MESSAGE = bytes(170)


def measure(profile: LinkProfile, seconds: float, messages: int) -> dict[str, float]:
    assert profile.up_bytes_per_s, "a link without a rate has nothing to measure"
    with socket.create_server(("127.0.0.1", 0)) as server:
        (proxy,) = open_proxies(profile, server.getsockname()[1], 1)
        rate = proxy.up.rate_bytes_per_s or 0.0
        proxy.up.jitter_s = proxy.up.loss = 0.0
        size = int(rate * seconds)
        with proxy, socket.create_connection(("127.0.0.1", proxy.port)) as near, server.accept()[0] as far:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            delays_s = [_passed(near, far, MESSAGE) - len(MESSAGE) / rate for _ in range(messages)]
            took_s = _passed(near, far, bytes(size)) - profile.delay_s
    return {
        "rate_error_percent": round(100 * (size / took_s / rate - 1), 2),
        "delay_error_ms": round(1000 * (statistics.median(delays_s) - profile.delay_s), 2),
        "delay_error_most_ms": round(1000 * (max(delays_s) - profile.delay_s), 2),
    }


def _passed(near: socket.socket, far: socket.socket, data: bytes) -> float:
    started_s = time.perf_counter()
    near.setblocking(False)
    sent = received = 0
    far.settimeout(0.0)
    while received < len(data):
        with contextlib.suppress(BlockingIOError):
            sent += near.send(data[sent : sent + 65536]) if sent < len(data) else 0
        try:
            received += len(far.recv(65536))
        except BlockingIOError:
            time.sleep(0.0002)
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--links", default="wifi,wifi-weak,lte,lte-weak,serial-115200")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = {
        name: measure(find_link(name), given.seconds, given.messages) for name in given.links.split(",")
    }
    if given.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        print(
            f"{name:<14} rate {row['rate_error_percent']:+6.2f} %   delay {row['delay_error_ms']:+5.2f} ms "
            f"(worst of {given.messages}: {row['delay_error_most_ms']:+.2f} ms)"
        )
    worst_rate = max(abs(row["rate_error_percent"]) for row in results.values())
    worst_delay = max(abs(row["delay_error_ms"]) for row in results.values())
    print(f"worst: rate {worst_rate:.2f} % (goal 5), median delay {worst_delay:.2f} ms (goal 2)")


if __name__ == "__main__":
    main()
