"""Radio energy by the published model, on transfers whose figures can be worked out by hand."""

import pytest

from testbed.emulation.energy import LTE, RS485, WIFI, Energy, link_energy
from testbed.emulation.shaping import Transfer


def test_a_second_of_upload_takes_the_power_of_the_paper():
    """LTE at 5.64 Mbit/s up: 438.39 * 5.64 + 1288.04 = 3761 mW."""
    second = [Transfer(10.0, 11.0, 705_000)]
    assert link_energy(LTE, second, []).transfer_j == pytest.approx(3.7606, abs=1e-3)


def test_both_ways_at_once_pay_the_base_once():
    up, down = [Transfer(0.0, 1.0, 125_000)], [Transfer(0.5, 1.5, 125_000)]
    expected_mj = 1.5 * WIFI.base_mw + WIFI.up_mw_per_mbps + WIFI.down_mw_per_mbps
    assert link_energy(WIFI, up, down).transfer_j == pytest.approx(expected_mj / 1000)


def test_one_packet_over_lte_costs_its_tail():
    packet = [Transfer(0.0, 0.0003, 200)]
    energy = link_energy(LTE, packet, [])
    promotion_and_tail_j = (0.2601 * 1210.7 + 11.576 * 1060.0) / 1000
    assert energy.with_tail_j - energy.transfer_j == pytest.approx(promotion_and_tail_j)
    assert energy.transfer_j < 0.002


def test_a_second_packet_within_the_tail_prolongs_it_and_one_after_it_pays_anew():
    first = Transfer(0.0, 0.0, 1)

    def awake_j(*others: float) -> float:
        energy = link_energy(LTE, [first, *(Transfer(t, t, 1) for t in others)], [])
        return energy.with_tail_j - energy.transfer_j

    once = awake_j()
    assert awake_j(5.0) == pytest.approx(once + 5.0 * 1.06)
    assert awake_j(100.0) == pytest.approx(2 * once)


def test_a_line_without_traffic_takes_nothing_and_a_wire_has_no_tail():
    assert link_energy(LTE, [], []) == Energy(0.0, 0.0)
    energy = link_energy(RS485, [Transfer(0.0, 1.0, 11_520)], [])
    assert energy.with_tail_j == energy.transfer_j
    assert energy.transfer_j == pytest.approx(0.112, rel=0.02), "33 mA and 1 mA at 3.3 V for a second"
