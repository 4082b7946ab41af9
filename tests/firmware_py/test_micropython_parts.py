"""The microcontroller's parts against the Linux device's, under CPython: they hold on both."""

import time

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_py.inference import companding as linux
from firmware_py.micropython import compand, rate, wire
from firmware_py.micropython.boot_counter import (
    COPY_BYTES,
    BootCount,
    BootError,
    NoClockError,
    former_boot,
    next_boot,
)
from firmware_py.micropython.clock import Clock
from firmware_py.micropython.errors import SetupError
from firmware_py.protocol.frame_authenticator import Crc, Mac
from firmware_py.protocol.framing import Deframer, FramingError, cobs_decode, encode_frame
from firmware_py.protocol.rate import Coding, Rate, RateError, pack

SEALS = [Crc(), Mac(bytes(range(32)), b"D")]


class Bytes:
    """A line that has all of it at once, or in pieces of ``most``."""

    def __init__(self, data, most=1 << 20):
        self.data, self._most = data, most

    def readinto(self, buffer):
        piece = self.data[: min(len(buffer), self._most)]
        buffer[: len(piece)] = piece
        self.data = self.data[len(piece) :]
        return len(piece) or None


def heard(data, seal, most=1 << 20):
    line = Bytes(data, most)
    inbox = wire.Inbox(line)
    found = []
    for _ in range(len(data) + 1):
        n = inbox.poll()
        # A record of nothing is none: see ``Crc.open``.
        if n and (body := wire.opened(seal, inbox.data, n)) > 0:
            found.append(bytes(inbox.data[:body]))
    return found, inbox.damaged


@pytest.mark.parametrize("seal", SEALS)
@given(data=st.binary(max_size=600))
def test_a_frame_is_that_of_the_linux_device(seal, data):
    buffer = bytearray(data + bytes(seal.size))
    frame = bytearray(wire.frame_bytes(len(buffer)))
    n = wire.frame_into(buffer, wire.seal_into(seal, buffer, len(data)), frame)
    assert bytes(frame[:n]) == encode_frame(data, seal)


@pytest.mark.parametrize("n", [253, 254, 255, 508, 509])
def test_frames_at_the_edge_of_a_block(n):
    data = bytearray(b"\x01" * n)
    frame = bytearray(wire.frame_bytes(n))
    assert cobs_decode(bytes(frame[: wire.frame_into(data, n, frame) - 1])) == data


@given(data=st.binary(max_size=300))
def test_what_is_no_frame_is_none_on_both(data):
    buffer = bytearray(data)
    n = wire.unframe(buffer, len(data))
    try:
        assert bytes(buffer[:n]) == cobs_decode(data) and n >= 0
    except FramingError:
        assert n == -1


@pytest.mark.parametrize("seal", SEALS)
@given(
    pieces=st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=80)), max_size=12),
    most=st.integers(1, 70),
)
def test_records_are_found_in_garbage_as_the_linux_device_finds_them(seal, pieces, most):
    stream = b"".join(encode_frame(data, seal) if whole else data for whole, data in pieces)
    assert heard(stream, seal, most)[0] == [data for data in Deframer(seal.open).feed(stream) if data]


def test_a_frame_too_long_is_passed_over_and_the_next_one_heard():
    seal = SEALS[1]
    assert heard(encode_frame(b"x" * 600, seal) + encode_frame(b"next", seal), seal) == ([b"next"], 1)


PREFIXES = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([8, 4])), max_size=3)


@given(latent=st.binary(min_size=2, max_size=40), prefixes=PREFIXES)
def test_the_payload_of_each_rate_is_that_of_the_linux_device(latent, prefixes):
    n = len(latent)
    try:
        coding = Coding(n, 0, tuple(Rate(*pair) for pair in prefixes))
    except RateError:
        return
    rates = rate.rates_of(n, prefixes)
    assert {(one.payload_bytes, one.values, one.bits) for one in coding.rates} == set(rates)
    for one in rates:
        out = bytearray(3 + n)
        assert rate.pack_into(latent, one, out, 3) == one[0]
        assert bytes(out[3 : 3 + one[0]]) == pack(np.frombuffer(latent, np.int8), Rate(*one[1:]))
        assert not any(out[:3]) and not any(out[3 + one[0] :])


class Bundle:
    """The numbers of a bundle."""

    def __init__(self, k, c, thin, scale, zero_point, width=3):
        self.k, self.c, self.thin = k, c, thin
        self.input_scale, self.input_zero_point = scale, zero_point
        self.time, self.width, self.sources = 20, width, 2


class Counts:
    """A source over ``(shots, samples, receivers)`` int16; breaks off after ``blocks``."""

    def __init__(self, counts, blocks=1 << 20):
        self._data = memoryview(np.ascontiguousarray(counts).tobytes())
        self._blocks = blocks

    def read_into(self, block):
        self._blocks -= 1
        size = 2 * len(block)
        memoryview(block).cast("B")[:] = self._data[:size]
        self._data = self._data[size:]
        return self._blocks >= 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    amplitude=st.sampled_from([3, 300, 32767]),
    step=st.floats(1e-6, 1.0),
    k=st.floats(0.5, 200.0),
    scale=st.floats(0.004, 0.02),
    zero_point=st.integers(-20, 20),
    receivers=st.integers(1, 3),
)
def test_the_encoders_input_is_that_of_the_linux_device(
    seed, amplitude, step, k, scale, zero_point, receivers
):
    """A value may differ by one where float32 cannot tell on which side of a threshold the sum is."""
    step = float(np.float32(step))
    companding = linux.Companding(k, 7.6, 10)
    rng = np.random.default_rng(seed)
    counts = rng.integers(-amplitude, amplitude + 1, (2, 200, receivers)).astype("<i2")
    bundle = Bundle(k, 7.6, 10, scale, zero_point)
    values = bytearray(20 * 3 * 2)
    mine = compand.Compander(bundle, receivers, values)
    mine.set_step(step)
    assert mine.fill(Counts(counts), lambda: None)
    found = np.frombuffer(values, np.int8).reshape(20, 3, 2).astype(int)
    real = linux.compand(counts.astype(np.float32) * np.float32(step), companding, 3) / scale + zero_point
    expected = np.clip(np.rint(real), -128, 127).astype(int)
    differs = found != expected
    assert np.abs(found - expected).max() <= 1
    assert (np.abs(real - np.floor(real) - 0.5)[differs] < 1e-4 * (1 + np.abs(real[differs]))).all()


def test_a_recording_that_breaks_off_is_none():
    mine = compand.Compander(Bundle(20.0, 7.6, 10, 0.01, 0), 3, bytearray(120))
    mine.set_step(1e-3)
    assert not mine.fill(Counts(np.zeros((2, 200, 3), "<i2"), blocks=7), lambda: None)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_recording_needs_a_scale(step):
    with pytest.raises(compand.RecordingError, match="positive value of one count"):
        compand.Compander(Bundle(20.0, 7.6, 10, 0.01, 0), 3, bytearray(120)).set_step(step)


def test_more_receivers_than_the_encoder_takes():
    with pytest.raises(compand.RecordingError, match="expected 1 to 3 receivers, got 4"):
        compand.Compander(Bundle(20.0, 7.6, 10, 0.01, 0), 4, bytearray(120))


def test_a_boot_number_is_the_next_and_of_the_clock_without_one():
    assert (next_boot(7, 1_800_000_000), next_boot(0, 1_800_000_000)) == (8, 1_800_000_001)
    with pytest.raises(NoClockError, match="mpremote rtc --set"):
        next_boot(0, 0)
    assert next_boot((1 << 32) - 2, 0) == (1 << 32) - 1
    with pytest.raises(SetupError, match="epic central devices forget"):
        next_boot((1 << 32) - 1, 1_800_000_000)


def test_a_clock_that_fits_into_no_record_is_not_set(monkeypatch):
    for now_s, expected in (
        (1_800_000_000, 1_800_000_000),
        ((1 << 32) - 2, (1 << 32) - 2),
        ((1 << 32) - 1, 0),
    ):
        monkeypatch.setattr(time, "time", lambda now_s=now_s: float(now_s))
        assert Clock().set_s() == expected


def test_a_cut_while_the_count_is_written_leaves_the_other_copy(tmp_path):
    path = tmp_path / "count"
    count = BootCount(str(path))
    for boot in (1000, 1001, 1002):
        count.write(boot)
    whole = path.read_bytes()
    count.write(1003)
    changed = path.read_bytes()
    assert changed[: 2 * COPY_BYTES] == whole[: 2 * COPY_BYTES], (
        "the newer copy, and its block, are left alone"
    )
    for cut in range(0, 512, 3):
        at = 2 * COPY_BYTES
        path.write_bytes(whole[:at] + changed[at : at + cut] + b"\xff" * (len(whole) - at - cut))
        again = BootCount(str(path))
        assert again.last in (1002, 1003)
        again.write(1003)
        assert BootCount(str(path)).last == 1003


def test_a_count_of_an_earlier_installation_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert former_boot() == 0
    (tmp_path / "boot.new").write_text("17 17\n")
    (tmp_path / "boot").write_text("16 1")
    assert former_boot() == 17


def test_a_flash_that_is_full_is_said(tmp_path):
    with pytest.raises(BootError, match="make room"):
        BootCount(str(tmp_path / "away" / "count"))


NUMBERS = st.one_of(
    st.none(),
    st.integers(-(1 << 53), (1 << 53) - 1),
    st.sampled_from([23, 24, 255, 256, 65535, 65536, 1 << 32]),
)


@given(values=st.lists(NUMBERS, max_size=23))
def test_health_is_cbor(values):
    from firmware_py.micropython.health import cbor

    assert cbor2.loads(cbor([*values[:20], "äöü"])) == [*values[:20], "äöü"]
