"""Compute the energy of a device's radio from the measured times of bytes on the link.

The model is that of Huang et al., "A Close Examination of Performance and Power Characteristics of 4G LTE Networks",
MobiSys 2012. Active power is a base plus a part per Mbit/s up and down. A sleeping radio is promoted first. After the
last byte it stays awake for a tail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from testbed.emulation.shaping import Transfer


@dataclass(frozen=True)
class Radio:
    """Power of one kind of radio or transceiver, in milliwatts.

    Active power is ``base_mw + up_mw_per_mbps * Mbit/s sent + down_mw_per_mbps * Mbit/s received``.
    """

    name: str
    up_mw_per_mbps: float
    down_mw_per_mbps: float
    base_mw: float
    promotion_s: float
    promotion_mw: float
    tail_s: float
    tail_mw: float
    source: str


_HUANG = "Huang et al., MobiSys 2012, tables 3 and 4"
LTE = Radio("LTE", 438.39, 51.97, 1288.04, 0.2601, 1210.7, 11.576, 1060.0, _HUANG)
WIFI = Radio("Wi-Fi", 283.17, 137.01, 132.86, 0.0791, 124.4, 0.2381, 119.3, _HUANG)
# At 3.3 V: 20 mA to send at 7 dBm, 11 mA to receive, asleep otherwise. The base is the receive power; sending at 5,470
# bit/s adds 9 mA.
LORA = Radio(
    "LoRa", 5430.0, 0.0, 36.3, 0.0, 0.0, 0.0, 0.0, "Semtech SX1276 datasheet, table 10, RFO at +7 dBm"
)
# At 92,160 bit/s of data: the driver into a terminated pair (60 ohm, 2 V: 33 mA at 3.3 V) and 1 mA for the chip.
RS485 = Radio(
    "RS-485", 1182.0, 0.0, 3.3, 0.0, 0.0, 0.0, 0.0, "Maxim MAX3485 datasheet: supply and driver current"
)


@dataclass(frozen=True)
class Energy:
    """Joules of one device's link: active transfer only, and with promotions and tails."""

    transfer_j: float
    with_tail_j: float


def link_energy(radio: Radio, sent: Iterable[Transfer], received: Iterable[Transfer]) -> Energy:
    """Compute the energy of one device's radio from its ``sent`` and ``received`` transfers, timed by one clock.

    Simultaneous sending and receiving counts the base power once. With tails, the radio sleeps before the first byte
    and stays awake for ``tail_s`` after each byte, or until the next.
    """
    sent, received = list(sent), list(received)
    busy = _merged([(t.start_s, t.end_s) for t in (*sent, *received)])
    active_s = sum(end - start for start, end in busy)
    megabits_up = sum(t.size_bytes for t in sent) * 8e-6
    megabits_down = sum(t.size_bytes for t in received) * 8e-6
    # mW per Mbit/s times Mbit gives millijoules, independent of the rate.
    transfer_mj = (
        radio.base_mw * active_s + radio.up_mw_per_mbps * megabits_up + radio.down_mw_per_mbps * megabits_down
    )
    awake_mj = 0.0
    asleep_since_s = float("-inf")
    for start, end in busy:
        if start >= asleep_since_s:
            awake_mj += radio.promotion_mw * radio.promotion_s + radio.tail_mw * radio.tail_s
        else:
            awake_mj += radio.tail_mw * (start + radio.tail_s - asleep_since_s)
        asleep_since_s = end + radio.tail_s
    return Energy(transfer_mj / 1000, (transfer_mj + awake_mj) / 1000)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Merge overlapping or touching time spans, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
