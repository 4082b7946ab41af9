"""Emulated links: what a message takes over each, measured through real sockets."""

import socket
import time
from dataclasses import replace

import pytest

from testbed.emulation.links import HEADER_BYTES, LINKS, LinkError, find_link, on_the_air, open_proxies
from testbed.emulation.shaping import Transfer


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20.0)
        yield listener


def pass_through(proxy, server, size: int) -> float:
    """Seconds until ``size`` bytes have come through."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as near, server.accept()[0] as far:
        far.settimeout(60.0)
        started_s = time.monotonic()
        near.sendall(bytes(size))
        left = size
        while left:
            left -= len(far.recv(left))
        return time.monotonic() - started_s


def test_every_profile_says_where_its_figures_come_from():
    assert set(LINKS) == {"loopback", "wifi", "wifi-weak", "lte", "lte-weak", "lora-like", "serial-115200"}
    assert all(profile.source and (profile.radio or name == "loopback") for name, profile in LINKS.items())


@pytest.mark.parametrize(("name", "size"), [("lte", 280_000), ("wifi", 1_400_000), ("serial-115200", 5_000)])
def test_no_transfer_is_faster_than_rate_and_delay_allow(server, name, size):
    """test_shaping.py has the rate by a clock of its own, benchmarks/robustness/links.py by the real one."""
    profile = find_link(name)
    expected_s = size / profile.up_bytes_per_s + profile.delay_s
    (proxy,) = open_proxies(profile, server.getsockname()[1], 1)
    with proxy:
        took_s = pass_through(proxy, server, size)
        on_air = sum(t.size_bytes for t in proxy.sent)
    assert on_air == size
    assert took_s >= 0.95 * expected_s


def test_devices_on_one_channel_share_its_rate():
    profile = find_link("wifi")
    proxies = open_proxies(profile, 9, 3)
    try:
        free_s = {id(proxy._medium) for proxy in proxies}
        assert len(free_s) == 1
    finally:
        for proxy in proxies:
            proxy.close()


def test_loss_takes_the_rate_that_tcp_makes_of_it():
    """Mathis: 1,460 bytes, 75 ms, 1 %: 1460 / 0.075 * sqrt(150) = 238 kB/s."""
    (proxy,) = open_proxies(replace(find_link("lte"), loss=0.01), 9, 1)
    proxy.close()
    assert proxy.up.rate_bytes_per_s == pytest.approx(238_400, rel=0.01)
    assert proxy.up.loss == 0.01


def test_headers_and_acknowledgements_are_on_the_air_as_bytes_and_time():
    lte = find_link("lte")
    up, down = on_the_air(lte, [Transfer(0.0, 1.0, 100), Transfer(2.0, 3.0, 1460 * 4)], [])
    assert [piece.size_bytes for piece in up] == [100 + HEADER_BYTES, 1460 * 4 + 4 * HEADER_BYTES]
    assert [piece.size_bytes for piece in down] == [HEADER_BYTES, 2 * HEADER_BYTES]
    assert up[1].end_s == pytest.approx(3.0 + 4 * HEADER_BYTES / lte.up_bytes_per_s)
    assert down[1].start_s == up[1].end_s
    assert down[1].end_s - down[1].start_s == pytest.approx(2 * HEADER_BYTES / lte.down_bytes_per_s)


def test_what_comes_down_is_acknowledged_up():
    up, down = on_the_air(find_link("loopback"), [], [Transfer(0.0, 0.0, 1461)])
    assert [piece.size_bytes for piece in down] == [1461 + 2 * HEADER_BYTES]
    assert up == [Transfer(0.0, 0.0, HEADER_BYTES)]
    assert on_the_air(find_link("loopback"), [], []) == ([], [])


def test_an_unknown_link_is_told_what_there_is():
    with pytest.raises(LinkError, match=r"expected one of loopback, wifi.*got 'wimax'"):
        find_link("wimax")
