"""What every link must do, whatever it is made of (after trio's ``check_two_way_stream``)."""

import os
import random
import threading

import pytest
from far_ends import ENDS
from waiting import wait_until

from firmware_py.links import stream as link_stream
from firmware_py.links.base import LinkError

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(link_stream, "RETRY_MIN_S", 0.02)


@pytest.fixture(params=ENDS)
def ends(request):
    with ENDS[request.param]() as opened:
        yield opened


def pass_on(source, sink, record) -> None:
    """Send ``record`` as soon as the link takes it, and see it arrive whole."""
    arrived = []

    def sent() -> bool:
        # A far end that accepts does so while it is asked to receive.
        if (got := sink.receive(0.0)) is not None:
            arrived.append(got)
        return source.send(record)

    wait_until(sent, what="a link that takes a record")
    while not arrived:
        got = sink.receive(PATIENCE_S)
        assert got is not None, "sent, and never arrived"
        arrived.append(got)
    assert arrived == [record]


def meet(ends) -> None:
    pass_on(ends.near, ends.far, b"hello")
    pass_on(ends.far, ends.near, b"good day")


@pytest.mark.parametrize("size", [1, 38, 166, 253, 254, 255, 2_000])
def test_records_arrive_whole_in_both_directions(ends, size):
    meet(ends)
    record = random.Random(size).randbytes(size)
    pass_on(ends.near, ends.far, record)
    pass_on(ends.far, ends.near, record[::-1])
    pass_on(ends.near, ends.far, bytes(size))


def test_the_largest_record(ends):
    meet(ends)
    record = bytes(38 + 65535)
    arrived = []
    reader = threading.Thread(target=lambda: arrived.append(receive_busily(ends.far)))
    reader.start()
    wait_until(lambda: ends.near.send(record), what="room")
    while reader.is_alive():
        ends.near.receive(0.01)
    reader.join()
    assert arrived == [record]


def receive_busily(link):
    for _ in range(int(PATIENCE_S / 0.01)):
        if (record := link.receive(0.01)) is not None:
            return record
    return None


@pytest.mark.parametrize("kind", ENDS)
def test_a_process_that_holds_many_files_has_links_all_the_same(kind):
    """A gateway of many ports; select() takes files up to the 1,024th."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_050)]
    try:
        with ENDS[kind]() as opened:
            meet(opened)
    finally:
        for file in held:
            os.close(file)


def test_many_records_keep_their_order(ends):
    meet(ends)
    sent = [i.to_bytes(4, "little") + bytes(160) for i in range(300)]
    got = []
    waiting = list(sent)
    while len(got) < len(sent):
        while waiting and ends.near.send(waiting[0]):
            waiting.pop(0)
        ends.near.receive(0.0)
        record = ends.far.receive(PATIENCE_S)
        assert record is not None
        got.append(record)
    assert got == sent


def test_a_reader_that_starts_late_stops_the_sender_and_loses_nothing(ends):
    meet(ends)
    sent = []
    # Bounded: a link that takes everything would fill the memory of a device whose centre is away.
    for i in range(20_000):
        record = i.to_bytes(4, "little") + bytes(1000)
        if not ends.near.send(record):
            break
        sent.append(record)
    else:
        pytest.fail("20 MB taken for a reader that does not read")
    got = []
    while len(got) < len(sent):
        ends.near.receive(0.0)
        record = ends.far.receive(PATIENCE_S)
        assert record is not None
        got.append(record)
    assert got == sent
    pass_on(ends.near, ends.far, b"and on it goes")


def test_both_directions_at_once(ends):
    meet(ends)
    n = 200
    up, down = [], []
    i = j = 0
    while len(up) < n or len(down) < n:
        if i < n and ends.near.send(b"up" + i.to_bytes(2, "little")):
            i += 1
        if j < n and j < i and ends.far.send(b"down" + j.to_bytes(2, "little")):
            j += 1
        up += [record for record in [ends.far.receive(0.001)] if record is not None]
        down += [record for record in [ends.near.receive(0.001)] if record is not None]
    assert up == [b"up" + k.to_bytes(2, "little") for k in range(n)]
    assert down == [b"down" + k.to_bytes(2, "little") for k in range(n)]


def test_nothing_to_receive(ends):
    meet(ends)
    assert ends.near.receive(0.0) is None
    assert ends.near.receive(0.02) is None


def test_statistics_count_records_and_at_least_their_bytes(ends):
    meet(ends)
    before = vars(ends.near.statistics).copy()
    for _ in range(5):
        pass_on(ends.near, ends.far, bytes(range(100)))
        pass_on(ends.far, ends.near, bytes(range(50)))
    after = ends.near.statistics
    assert after.records_sent - before["records_sent"] == 5
    assert after.records_received - before["records_received"] == 5
    assert 500 <= after.bytes_sent - before["bytes_sent"] <= 500 + 5 * 50
    assert 250 <= after.bytes_received - before["bytes_received"] <= 250 + 5 * 50


def test_a_cut_link_comes_back(ends):
    if not ends.cut:
        pytest.skip("nothing to cut between the ends of this link")
    meet(ends)
    for round_number in range(3):
        ends.cut()
        answered = None
        for attempt in range(int(PATIENCE_S / 0.05)):
            ends.near.send(b"%d-%d" % (round_number, attempt))
            ends.near.receive(0.02)
            answered = ends.far.receive(0.03)
            if answered and answered.startswith(b"%d-" % round_number):
                break
        else:
            pytest.fail("the link did not come back")


def test_noise_between_records_is_passed_over(ends):
    if not ends.shout:
        pytest.skip("a link of messages has no bytes between them")
    meet(ends)
    for noise in (b"\x07" * 3, bytes(range(256)), b"\0\0\0", b"\xff" * 5000):
        ends.shout(noise + b"\0")
        pass_on(ends.far, ends.near, b"after noise")
    assert ends.near.statistics.damaged >= 2


def test_closing_twice_is_closing_and_a_closed_link_says_so(ends):
    meet(ends)
    ends.near.close()
    ends.near.close()
    with pytest.raises(LinkError, match="closed"):
        ends.near.send(b"x")
    with pytest.raises(LinkError, match="closed"):
        ends.near.receive(0.0)
