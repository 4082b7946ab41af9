"""Answers on a slow line: acknowledgements first and together, nothing twice, nothing faster than the line."""

from fake_decoder import latent_record
from waiting import wait_until

from central.gateway import send_queue as send_queue
from central.gateway.send_queue import MAX_GROUP, SendQueue
from firmware_py.protocol import packet
from firmware_py.protocol.frame_authenticator import DOWNLINK, UPLINK, Mac
from firmware_py.protocol.framing import Deframer, encode_frame
from firmware_py.protocol.packet import acknowledge, acknowledged_sequences, encode_record, refuse

SECRET = bytes(range(32))
BITS_A_BYTE = 10  # 8N1


class Wire:
    """A port that takes ``room`` bytes."""

    def __init__(self, room=1 << 30):
        self.room = room
        self.taken = bytearray()

    def write(self, data):
        piece = bytes(data[: self.room - len(self.taken)])
        self.taken += piece
        return len(piece)

    def records(self):
        return [packet.decode_record(data) for data in Deframer().feed(self.taken)]


def ack(sequence, device=0, boot=1, more=()):
    return encode_record(acknowledge(latent_record(device=device, sequence=sequence, boot=boot), more))


def busy(bytes_per_s=960.0) -> tuple[SendQueue, Wire]:
    """An outbox whose slow line is occupied by a long answer that has just left."""
    box, wire = SendQueue(encode_frame, bytes_per_s), Wire()
    box.add(encode_record(refuse(latent_record(device=9), "r" * 250)))
    box.write(wire)
    return box, wire


def drain(box, wire) -> list[packet.Record]:
    def empty():
        box.write(wire)
        return box.wait_s() is None

    wait_until(empty, what="an empty outbox")
    return wire.records()


def test_a_record_with_mac_and_its_acknowledgement_fit_20_ms_of_line_time():
    record = latent_record(payload=bytes(range(128)))
    up = encode_frame(encode_record(record), Mac(SECRET, UPLINK))
    down = encode_frame(encode_record(acknowledge(record)), Mac(SECRET, DOWNLINK))
    assert (len(up) + len(down)) * BITS_A_BYTE / 115_200 <= 0.020


def test_the_size_of_a_frame_does_not_depend_on_what_is_in_it():
    """COBS costs one byte up to 254, zeros or none, so the line time above holds for every latent."""
    sizes = {
        len(encode_frame(encode_record(latent_record(payload=payload)), Mac(SECRET, UPLINK)))
        for payload in (bytes(128), b"\xff" * 128, bytes(range(128)))
    }
    assert sizes == {176}


def test_acknowledgements_that_wait_leave_in_one_record():
    box, wire = busy()
    for sequence in (7, 5, 6, 6, 9):
        assert box.add(ack(sequence))
    assert box.wait_s() > 0.0, "the line is still busy"
    _, group = drain(box, wire)
    assert acknowledged_sequences(group) == (7, 5, 6, 9)


def test_devices_and_boots_are_not_mixed():
    box, wire = busy()
    for answer in (ack(1), ack(2, device=1), ack(3, boot=2), ack(4), ack(5, device=1, more=[6])):
        box.add(answer)
    found = {(r.device, r.boot): acknowledged_sequences(r) for r in drain(box, wire)[1:]}
    assert found == {(0, 1): (1, 4), (1, 1): (2, 5, 6), (0, 2): (3,)}


def test_a_group_has_an_end():
    box, wire = busy(bytes_per_s=9600.0)
    box.add(ack(1, more=list(range(2, 2 * MAX_GROUP))))
    groups = [acknowledged_sequences(record) for record in drain(box, wire)[1:]]
    assert [len(group) for group in groups] == [MAX_GROUP, MAX_GROUP - 1]
    assert sum(groups, ()) == tuple(range(1, 2 * MAX_GROUP))


def test_acknowledgements_go_before_longer_answers_and_those_keep_their_order():
    box, wire = busy(bytes_per_s=9600.0)
    answers = [refuse(latent_record(sequence=n), f"reason {n}") for n in (1, 2)]
    for answer in answers:
        box.add(encode_record(answer))
    box.add(ack(3))
    assert drain(box, wire)[1:] == [acknowledge(latent_record(sequence=3)), *answers]


def test_what_waits_already_is_not_taken_twice():
    box, wire = busy()
    answer = encode_record(refuse(latent_record(), "no"))
    assert box.add(answer) and box.add(answer)
    assert len(drain(box, wire)) == 2


def test_an_acknowledgement_that_says_more_travels_as_it_is():
    box, wire = busy()
    telling = acknowledge(latent_record(sequence=1))
    telling.sample_time_us = 1_700_000_000_000_000
    box.add(encode_record(telling))
    box.add(ack(2))
    assert telling in drain(box, wire)


def test_what_nobody_reads_is_bounded_and_an_empty_outbox_takes_the_largest(monkeypatch):
    monkeypatch.setattr(send_queue, "MAX_BYTES", 1000)
    box, wire = SendQueue(encode_frame, 1e9), Wire(room=0)
    largest = packet.Record(packet.UPDATE, 0, 1, 1, 0, payload=bytes(65535))
    assert box.add(encode_record(largest))
    assert not box.add(ack(1)), "full"
    wire.room = 1 << 30
    assert drain(box, wire) == [largest]
    taken = sum(box.add(ack(sequence)) for sequence in range(1000))
    assert 10 < taken < 100


def test_a_line_is_not_given_more_than_it_can_carry():
    box, wire = SendQueue(encode_frame, 960.0), Wire()
    for device in range(20):
        box.add(ack(1, device=device))
    box.write(wire)
    # 50 ms are 48 bytes: what had begun, and one more.
    assert len(wire.records()) <= 3
    assert len(drain(box, wire)) == 20
