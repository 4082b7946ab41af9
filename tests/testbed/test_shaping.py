"""Rate, delay, jitter and bit errors of an emulated link, by a clock of the test's own."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.emulation.shaping import BACKLOG_BYTES, BACKLOG_S, Conditions, Medium, Shaper, Transfer


def shaper(**conditions) -> Shaper:
    return Shaper(Conditions(**conditions), random.Random(0))


def arrivals(link: Shaper) -> list[tuple[float, bytes]]:
    found = []
    while (due_s := link.due_s()) is not None:
        found.append((due_s, link.pop(due_s)))
    return found


def test_without_conditions_bytes_arrive_at_once():
    link = shaper()
    link.push(b"abc", 5.0)
    assert len(link) == 3
    assert link.pop(5.0) == b"abc"
    assert len(link) == 0
    assert link.due_s() is None


def test_a_rate_spreads_bytes_over_time_and_the_last_arrives_when_all_can():
    link = shaper(rate_bytes_per_s=11_520)
    link.push(bytes(1152), 10.0)
    found = arrivals(link)
    assert found[-1][0] == pytest.approx(10.1, abs=1e-6)
    half = sum(len(data) for due_s, data in found if due_s <= 10.05)
    assert half == pytest.approx(576, abs=60), "bytes come one after the other, not in a lump"


def test_what_is_sent_while_the_link_is_busy_queues_and_an_idle_link_saves_nothing_up():
    link = shaper(rate_bytes_per_s=1000)
    link.push(bytes(100), 0.0)
    link.push(bytes(100), 0.05)
    link.push(bytes(100), 9.0)
    ends = [due_s for due_s, _ in arrivals(link)]
    assert max(due_s for due_s in ends if due_s < 5) == pytest.approx(0.2)
    assert ends[-1] == pytest.approx(9.1)


def test_delay_and_jitter_stay_within_their_bounds_and_keep_order():
    link = shaper(delay_s=2.0, jitter_s=0.5)
    delays = []
    for n in range(1000):
        link.push(n.to_bytes(2, "little"), float(n))
    out = b""
    for n, (due_s, data) in enumerate(arrivals(link)):
        delays.append(due_s - n)
        out += data
    assert out == b"".join(n.to_bytes(2, "little") for n in range(1000))
    assert min(delays) >= 2.0
    assert max(delays) <= 2.5
    assert max(delays) - min(delays) > 0.4


@given(st.lists(st.tuples(st.binary(max_size=50), st.floats(0, 1)), max_size=20), st.randoms())
def test_a_faultless_link_delivers_what_was_sent_in_order(sent, rng):
    link = Shaper(Conditions(rate_bytes_per_s=500, delay_s=0.1, jitter_s=0.2), rng)
    now_s = 0.0
    for data, later_s in sent:
        now_s += later_s
        link.push(data, now_s)
    assert b"".join(data for _, data in arrivals(link)) == b"".join(data for data, _ in sent)


@pytest.mark.parametrize("probability", [1e-4, 1e-2, 0.5])
def test_bits_are_wrong_as_often_as_said(probability):
    link = shaper(bit_error_rate=probability)
    link.push(bytes(200_000), 0.0)
    wrong = sum(byte.bit_count() for byte in link.pop(0.0))
    assert wrong == link.bit_errors
    expected = 1_600_000 * probability
    assert abs(wrong - expected) < 5 * expected**0.5


def test_every_bit_may_be_wrong():
    link = shaper(bit_error_rate=1.0)
    link.push(b"\x0f\xf0", 0.0)
    assert link.pop(0.0) == b"\xf0\x0f"


def test_swallowed_bytes_are_gone_and_counted():
    conditions = Conditions(swallow=True)
    link = Shaper(conditions, random.Random(0))
    link.push(b"lost", 0.0)
    conditions.swallow = False
    link.push(b"found", 0.0)
    assert link.pop(0.0) == b"found"
    assert link.swallowed_bytes == 4


def test_a_slow_link_takes_no_more_than_its_backlog():
    link = shaper(rate_bytes_per_s=1000)
    assert link.ready_s(3.0) == 3.0
    link.push(bytes(500), 3.0)
    assert link.ready_s(3.0) == pytest.approx(3.5 - BACKLOG_S)
    assert link.ready_s(4.0) == 4.0


def test_a_full_link_waits_for_what_comes_out():
    link = shaper(delay_s=1.0)
    link.push(bytes(BACKLOG_BYTES + 1), 0.0)
    assert link.ready_s(0.5) is None
    link.pop(1.0)
    assert link.ready_s(1.0) == 1.0


def test_a_lifted_rate_holds_nothing_back():
    conditions = Conditions(rate_bytes_per_s=10)
    link = Shaper(conditions, random.Random(0))
    link.push(bytes(10), 0.0)
    arrivals(link)
    conditions.rate_bytes_per_s = None
    link.push(b"x", 1.0)
    assert link.ready_s(1.0) == 1.0
    assert link.pop(1.0) == b"x"


def test_a_lost_segment_of_a_short_message_comes_a_time_out_and_a_round_trip_later():
    link = shaper(delay_s=0.05, loss=0.5)
    delays = []
    for n in range(200):
        link.push(b"x", 10.0 * n)
        delays.append(round(link.due_s() - 10.0 * n, 6))
        link.pop(10.0 * n + 9.0)
    assert set(delays) >= {0.05, 0.35, 0.65}
    assert delays.count(0.05) == pytest.approx(100, abs=25)


def test_losses_hold_back_what_follows_and_lose_no_byte():
    link = shaper(delay_s=0.05, loss=0.2)
    data = bytes(range(256)) * 200
    link.push(data, 0.0)
    found = arrivals(link)
    assert b"".join(piece for _, piece in found) == data
    assert found[-1][0] >= 0.15, "many segments: one at least came a round trip late"
    assert found[-1][0] < 0.25 + 0.05, "and none waited for a time-out"


def test_links_that_share_a_medium_take_turns():
    medium = Medium()
    one, other = (Shaper(Conditions(1000.0), random.Random(0), medium) for _ in range(2))
    one.push(bytes(100), 0.0)
    other.push(bytes(100), 0.0)
    assert arrivals(one)[-1][0] == pytest.approx(0.1)
    assert arrivals(other)[-1][0] == pytest.approx(0.2)


def test_transfers_are_noted_as_they_occupy_the_line():
    transfers: list[Transfer] = []
    link = Shaper(Conditions(1000.0, delay_s=5.0), random.Random(0), transfers=transfers)
    link.push(bytes(100), 1.0)
    link.push(bytes(100), 1.05)
    link.push(bytes(50), 9.0)
    assert [(round(t.start_s, 3), round(t.end_s, 3), t.size_bytes) for t in transfers] == [
        (1.0, 1.2, 200),
        (9.0, 9.05, 50),
    ]
