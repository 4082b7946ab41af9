"""Emulated links by name: rate, delay, jitter, loss and radio, with the sources of the figures.

A profile describes the link as TCP sees it. Its rates are goodput, which includes the overhead of the radio's own
layers. ``on_the_air`` adds the headers of TCP and IP. Slow start is not emulated: the first segment already gets the
full rate. This favours large messages (a raw gather over LTE would need about five more round trips).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from testbed.emulation.energy import LORA, LTE, RS485, WIFI, Radio
from testbed.emulation.proxy import Proxy
from testbed.emulation.shaping import SEGMENT_BYTES, Medium, Transfer
from testbed.errors import TestbedError

# IPv4 and TCP headers with time stamps, of a segment or an acknowledgement.
HEADER_BYTES = 52


class LinkError(TestbedError, ValueError):
    """No link has this name."""


@dataclass(frozen=True)
class LinkProfile:
    """One kind of link between a device and the centre; ``up`` is towards the centre.

    ``delay_s`` is one way. ``shared`` means that all devices and both directions take turns on one channel.
    """

    name: str
    up_bytes_per_s: float | None
    down_bytes_per_s: float | None
    delay_s: float
    jitter_s: float
    loss: float
    shared: bool
    radio: Radio | None
    source: str

    def rate_bytes_per_s(self, rate: float | None) -> float | None:
        """Return TCP's throughput: ``rate``, limited under loss to MSS / RTT * sqrt(3/2) / sqrt(loss).

        Source: Mathis, Semke, Mahdavi, Ott: "The macroscopic behavior of the TCP congestion avoidance algorithm", ACM
        CCR 27(3), 1997.
        """
        if not self.loss or not self.delay_s:
            return rate
        most = SEGMENT_BYTES / (2 * self.delay_s + self.jitter_s) * math.sqrt(1.5 / self.loss)
        return most if rate is None else min(rate, most)


def _mbps(rate: float) -> float:
    return rate * 1e6 / 8


_HUANG = "Huang et al., MobiSys 2012: median of 4GTest, 12.7 Mbit/s down, 5.6 Mbit/s up, round trip 70 ms"
LINKS = {
    profile.name: profile
    for profile in (
        LinkProfile("loopback", None, None, 0.0, 0.0, 0.0, False, None, "this machine, nothing emulated"),
        LinkProfile(
            "wifi",
            _mbps(40.0),
            _mbps(40.0),
            0.0015,
            0.001,
            0.0,
            True,
            WIFI,
            "802.11n, 2.4 GHz, one spatial stream of 20 MHz: 65 Mbit/s on the air (IEEE 802.11n-2009, MCS 7), about "
            "40 Mbit/s of TCP goodput near the access point, one channel for all; round trip 3 ms",
        ),
        LinkProfile(
            "wifi-weak",
            _mbps(4.0),
            _mbps(4.0),
            0.005,
            0.010,
            0.005,
            True,
            WIFI,
            "802.11n at its slowest rate, 6.5 Mbit/s on the air (MCS 0): about 4 Mbit/s of goodput, losses left over "
            "by the radio's own retries",
        ),
        LinkProfile("lte", _mbps(5.64), _mbps(12.74), 0.035, 0.005, 0.0, False, LTE, _HUANG),
        LinkProfile(
            "lte-weak",
            _mbps(0.5),
            _mbps(2.0),
            0.060,
            0.030,
            0.005,
            False,
            LTE,
            "assumed: a cell's edge, about a tenth of the median rate of Huang et al., MobiSys 2012",
        ),
        LinkProfile(
            "lora-like",
            5_470 / 8,
            5_470 / 8,
            0.050,
            0.0,
            0.0,
            True,
            LORA,
            "LoRa SF7, 125 kHz, coding rate 4/5: 5,470 bit/s (Semtech SX1276 datasheet), no duty cycle limit, one "
            "channel; as a byte stream, which LoRa itself is not",
        ),
        LinkProfile(
            "serial-115200",
            11_520.0,
            11_520.0,
            0.0,
            0.0,
            0.0,
            False,
            RS485,
            "8N1: ten bits a byte",
        ),
    )
}


def find_link(name: str) -> LinkProfile:
    """Return the profile of that name. Raises ``LinkError``."""
    if name not in LINKS:
        raise LinkError(f"link: expected one of {', '.join(LINKS)}; got {name!r}")
    return LINKS[name]


def open_proxies(profile: LinkProfile, target_port: int, n_devices: int) -> list[Proxy]:
    """Open a proxy for each device's link to ``target_port`` of this machine, under ``profile``'s conditions."""
    medium = Medium() if profile.shared else None
    proxies = [Proxy(target_port, seed=device, medium=medium) for device in range(n_devices)]
    set_conditions(proxies, profile)
    return proxies


def set_conditions(proxies: list[Proxy], profile: LinkProfile) -> None:
    """Set the conditions for bytes from now on."""
    for proxy in proxies:
        for way, rate in ((proxy.up, profile.up_bytes_per_s), (proxy.down, profile.down_bytes_per_s)):
            way.rate_bytes_per_s = profile.rate_bytes_per_s(rate)
            way.delay_s, way.jitter_s, way.loss = profile.delay_s, profile.jitter_s, profile.loss


def on_the_air(
    profile: LinkProfile, sent: Iterable[Transfer], received: Iterable[Transfer]
) -> tuple[list[Transfer], list[Transfer]]:
    """Add the TCP/IP headers of both directions to a device's ``sent`` and ``received`` transfers.

    Each piece is split into segments of at most 1,460 bytes. The other side acknowledges every second segment and the
    last one (RFC 1122). Headers occupy the link at its rate.
    """
    both: tuple[list[Transfer], list[Transfer]] = ([], [])
    rates = (profile.up_bytes_per_s, profile.down_bytes_per_s)
    for way, pieces in enumerate((sent, received)):
        for piece in pieces:
            segments = -(-piece.size_bytes // SEGMENT_BYTES)
            headers, acknowledgements = HEADER_BYTES * segments, HEADER_BYTES * -(-segments // 2)
            end_s = piece.end_s + _lasts_s(headers, rates[way])
            both[way].append(Transfer(piece.start_s, end_s, piece.size_bytes + headers))
            back_s = _lasts_s(acknowledgements, rates[1 - way])
            both[1 - way].append(Transfer(end_s, end_s + back_s, acknowledgements))
    return both


def _lasts_s(size_bytes: int, bytes_per_s: float | None) -> float:
    return size_bytes / bytes_per_s if bytes_per_s else 0.0
