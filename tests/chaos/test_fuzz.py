"""A few thousand mutated inputs to every decoder and endpoint; ``benchmarks/robustness/fuzz.py`` sends a million."""

import struct

import pytest
from fuzz_targets import FrameTarget, FuzzedCentre, GatewayTarget, MessageTarget, PacketTarget, ReceiverTarget

from firmware_py.protocol import packet
from firmware_py.protocol.framing import Deframer

pytestmark = pytest.mark.slow

INPUTS = 2000


@pytest.fixture
def centre(tmp_path):
    centre = FuzzedCentre(tmp_path)
    yield centre
    centre.close()


def both_outcomes(target):
    return target.counts["taken"] > INPUTS / 50 and target.counts["refused"] > INPUTS / 10


@pytest.mark.parametrize("target", [PacketTarget, FrameTarget, MessageTarget])
def test_a_decoder_takes_or_refuses_whatever_comes(target):
    fuzzed = target(seed=1)
    fuzzed.feed(INPUTS)
    assert both_outcomes(fuzzed)


@pytest.mark.parametrize("target", [GatewayTarget, ReceiverTarget])
def test_the_centre_takes_or_refuses_whatever_comes(centre, target):
    fuzzed = target(1, centre)
    try:
        fuzzed.feed(INPUTS)
        assert both_outcomes(fuzzed)
    finally:
        fuzzed.close()


def test_a_decoder_that_fails_in_another_way_is_found(monkeypatch):
    decode = packet.decode_record

    def hasty(data):
        struct.unpack("<2s", data[:2])
        return decode(data)

    monkeypatch.setattr(packet, "decode_record", hasty)
    with pytest.raises(struct.error):
        PacketTarget(seed=1).feed(INPUTS)


def test_a_frame_that_nobody_sealed_is_found(monkeypatch):
    feed = Deframer.feed
    monkeypatch.setattr(Deframer, "feed", lambda self, data: [*feed(self, data), b"forged"])
    with pytest.raises(AssertionError, match="nobody had sealed"):
        FrameTarget(seed=1).feed(INPUTS)
