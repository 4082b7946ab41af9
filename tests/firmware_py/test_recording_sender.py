"""A device sends what it is asked for: in its loop, over a real link, out of its folder or a replay."""

import hashlib
import os
import time

import numpy as np
import pytest
from fake_centre import FakeCentre
from waiting import wait_until

from firmware_py.inference.companding import GatherError
from firmware_py.protocol import packet
from firmware_py.protocol.recording_codec import decode_part
from firmware_py.protocol.recording_messages import (
    MAX_WAIT_S,
    End,
    Fetch,
    NoRecording,
    Part,
    Piece,
    PieceRequest,
    Wait,
    decode_message,
    encode_message,
)
from firmware_py.protocol.repeater import RETRY_MAX_S
from firmware_py.runtime.config import SourceSection
from firmware_py.runtime.recording_sender import GIVE_UP_S, RecordingSender
from firmware_py.runtime.run import run_device
from firmware_py.sources import recordings
from firmware_py.sources.recordings import FolderSource, Selection, open_gathers

SELECTION = Selection((2, 6, 4), (1, 2))
T_US = 1_700_000_000_000_000
HEADER = packet.Record(packet.UPDATE, 1, 1, 9, 0, model_hash=b"12345678")
WAVES = np.cumsum(np.random.default_rng(1).normal(size=(2, 500, 3)), axis=1).astype(np.float32)


def ask(message, event=7, sample_time_us=T_US):
    return packet.Record(packet.RECORDING, 1, 1, 9, 1, event, sample_time_us, payload=encode_message(message))


class Talk:
    """A sender on the test's clock."""

    def __init__(self, find=lambda event, time_us: WAVES):
        self.now_s = 100.0
        self.waiting = False
        self.log = []
        self.sender = RecordingSender(
            HEADER, find, (3, 4, 5), lambda: self.waiting, 1000, lambda what, **_: self.log.append(what)
        )

    def tell(self, message, **header):
        self.sender.handle(ask(message, **header), self.now_s)
        if coding := self.sender._coding:
            wait_until(coding.done)

    def said(self, after_s=0.0):
        self.now_s += after_s
        record = self.sender.poll(self.now_s)
        return record and decode_message(record.payload)


@pytest.fixture
def talk():
    made = []

    def make(**options):
        made.append(Talk(**options))
        return made[-1]

    yield make
    for one in made:
        one.sender.close()


def test_nothing_is_sent_unasked(talk):
    assert talk().said(100.0) is None


def test_a_part_is_described_then_sent_as_it_is_asked_for(talk):
    one = talk()
    one.tell(Fetch(0))
    part = one.said()
    data = b""
    while len(data) < part.part_bytes:
        one.tell(PieceRequest(part.sha256, len(data), 32_768))
        piece = one.said()
        assert (piece.sha256, piece.offset) == (part.sha256, len(data))
        assert len(piece.data) <= 1000
        data += piece.data
    assert hashlib.sha256(data).digest() == part.sha256
    decoded = decode_part(data, WAVES.size)
    assert decoded.samples.tobytes() == WAVES.tobytes()
    assert decoded.receivers == (3, 4, 5)
    one.tell(End())
    assert one.said(RETRY_MAX_S) is None
    assert one.log == ["recording_asked", "recording_coded", "recording_ended"]


def test_messages_carry_the_event_its_sample_time_and_a_count(talk):
    one = talk()
    one.tell(Fetch(0))
    first = one.sender.poll(one.now_s)
    again = one.sender.poll(one.now_s + 2.0)
    assert (first.type, first.device, first.survey, first.boot, first.model_hash) == (7, 1, 1, 9, b"12345678")
    assert (first.event, first.sample_time_us) == (7, T_US)
    assert (first.sequence, again.sequence) == (1, 2)


def test_what_is_not_answered_is_repeated_ever_less_often_and_given_up_after_an_hour(talk):
    one = talk()
    one.tell(Fetch(0))
    times = []
    for _ in range(int(GIVE_UP_S) + 10):
        if one.said(1.0):
            times.append(one.now_s)
    gaps = np.diff(times)
    assert list(gaps[:6]) == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert gaps.max() == RETRY_MAX_S
    assert one.log[-1] == "recording_given_up"
    assert one.said(1e6) is None


def test_latents_go_first(talk):
    one = talk()
    one.tell(Fetch(0))
    one.waiting = True
    assert one.said(RETRY_MAX_S) is None
    one.waiting = False
    assert isinstance(one.said(), Part)


def test_after_a_wait_the_part_is_described_again(talk):
    one = talk()
    one.tell(Fetch(0))
    part = one.said()
    one.tell(PieceRequest(part.sha256, 0, 100))
    assert isinstance(one.said(), Piece)
    one.tell(Wait(600))
    assert one.said(599.0) is None
    assert one.said(1.0) == part


def test_after_the_longest_wait_the_part_is_described_again_until_it_is_given_up(talk):
    one = talk()
    one.tell(Fetch(0))
    part = one.said()
    one.tell(Wait(MAX_WAIT_S))
    assert one.said(MAX_WAIT_S + 0.2) == part
    assert one.said(GIVE_UP_S - 1.0) == part
    assert one.said(1.0) is None
    assert one.log == ["recording_asked", "recording_coded", "recording_given_up"]


def test_a_request_for_what_is_at_work_already_says_where_it_stands(talk):
    calls = []
    one = talk(find=lambda *key: calls.append(key) or WAVES)
    one.tell(Fetch(0))
    part = one.said()
    one.tell(PieceRequest(part.sha256, 1000, 100))
    one.tell(Fetch(0))
    assert one.said() == part
    assert calls == [(7, T_US)], "coded once"


def test_another_request_takes_the_place_of_one_that_is_not_wanted_any_more(talk):
    one = talk(find=lambda event, time_us: WAVES + event)
    one.tell(Fetch(0))
    first = one.said()
    one.tell(Fetch(0), event=8)
    second = one.said()
    assert second != first
    one.tell(PieceRequest(first.sha256, 0, 100), event=7)
    assert one.said() is None, "an answer to the old one"


def test_a_recording_that_is_gone_is_said_until_it_is_heard(talk):
    def find(event, time_us):
        raise GatherError("event 7: not kept any more")

    one = talk(find=find)
    one.tell(Fetch(0))
    assert one.said() == one.said(2.0) == NoRecording("event 7: not kept any more")
    one.tell(End())
    assert one.said(RETRY_MAX_S) is None


def test_a_recording_that_cannot_be_coded_is_said(talk):
    one = talk(find=lambda event, time_us: np.full((1, 2, 3), np.nan, np.float32))
    one.tell(Fetch(0))
    assert "expected finite" in one.said().reason


def test_nonsense_is_an_error_for_the_node_to_log(talk):
    record = ask(End())
    record.payload = b"\x01"
    with pytest.raises(packet.PacketError, match="recording: expected one message"):
        talk().sender.handle(record, 0.0)


def test_a_request_for_bytes_past_the_end_is_not_answered(talk):
    one = talk()
    one.tell(Fetch(0))
    part = one.said()
    one.tell(PieceRequest(part.sha256, part.part_bytes, 100))
    assert one.said() is None


# In the folder of a device.


def put(folder, name, value, time_us=T_US):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.full(SELECTION.shape, value, np.float32))
    os.utime(path, ns=(1000 * time_us, 1000 * time_us))


def found(folder, event, sample_time_us):
    return FolderSource(folder, SELECTION, 0.0).find(event, sample_time_us)


def test_a_recording_is_found_by_its_number_and_time(tmp_path):
    put(tmp_path / "sent", "shot-0007.npy", 1)
    put(tmp_path / "sent", "shot-0008.npy", 2)
    samples = found(tmp_path, 7, T_US)
    assert samples.shape == (2, 6, 2), "this device's receivers"
    assert samples[0, 0, 0] == 1


@pytest.mark.parametrize(
    "second", ["shot-0007.~2~.npy", "shot-0007.2.npy"], ids=["marked", "marked as before"]
)
def test_of_recordings_of_one_number_the_one_of_the_latent_is_found(tmp_path, second):
    """A recorder that was started anew counts from the start, and ``sent/`` renames the second."""
    put(tmp_path / "sent", "shot-0007.npy", 1, T_US)
    put(tmp_path / "sent", second, 2, T_US + 5_000_000)
    put(tmp_path / "sent", "shot-0002.npy", 3, T_US)
    assert found(tmp_path, 7, T_US)[0, 0, 0] == 1
    assert found(tmp_path, 7, T_US + 5_000_000)[0, 0, 0] == 2
    assert found(tmp_path, 2, T_US)[0, 0, 0] == 3
    with pytest.raises(GatherError, match="event 2: removed, or never recorded here"):
        found(tmp_path, 2, T_US + 1)


def test_without_a_time_the_newest_of_the_number_is_found(tmp_path):
    put(tmp_path / "sent", "a7.npy", 1, T_US)
    put(tmp_path / "sent", "b7.npy", 2, T_US + 1)
    put(tmp_path / "sent", "b7.~2~.npy", 3, T_US + 2)
    assert found(tmp_path, 7, 0)[0, 0, 0] == 3
    with pytest.raises(GatherError, match="event 2: removed, or never recorded here"):
        found(tmp_path, 2, 0)


def test_only_the_last_number_in_a_name_is_the_event(tmp_path):
    """Copies and some file systems keep whole seconds, so that two recordings have one time."""
    put(tmp_path / "sent", "survey-3-shot-0003.npy", 3)
    put(tmp_path / "sent", "survey-3-shot-0004.npy", 4)
    put(tmp_path / "sent", "line-3.0005.npy", 5)
    assert [found(tmp_path, event, T_US)[0, 0, 0] for event in (3, 4, 5)] == [3, 4, 5]


def test_a_hidden_file_is_no_recording(tmp_path):
    put(tmp_path / "sent", "shot-7.npy", 1)
    put(tmp_path / "sent", ".shot-8.npy", 2)
    (tmp_path / ".shot-7.npy").write_bytes(b"half of one")
    assert found(tmp_path, 7, 0)[0, 0, 0] == 1
    assert FolderSource(tmp_path, SELECTION, 0.0).kept() == 1
    with pytest.raises(GatherError, match="event 8: removed, or never recorded here"):
        found(tmp_path, 8, 0)


@pytest.mark.parametrize("moment", ["before sent/ is listed", "before the file is opened"])
def test_a_recording_that_is_moved_while_it_is_looked_up_is_found(tmp_path, monkeypatch, moment):
    source = FolderSource(tmp_path, SELECTION, 0.0)
    put(tmp_path, "shot-7.npy", 1)

    def move():
        if (tmp_path / "shot-7.npy").exists():
            (tmp_path / "shot-7.npy").rename(tmp_path / "sent" / "shot-7.npy")

    if moment == "before sent/ is listed":
        sent = source._aside.sent
        monkeypatch.setattr(source._aside, "sent", lambda: move() or sent())
    else:
        monkeypatch.setattr(recordings, "open_gathers", lambda path: move() or open_gathers(path))
    assert source.find(7, T_US)[0, 0, 0] == 1


def test_a_recording_that_could_not_be_moved_is_found_where_it_is(tmp_path):
    put(tmp_path, "shot-7.npy", 1)
    assert found(tmp_path, 7, T_US)[0, 0, 0] == 1


def test_a_recording_that_was_removed_for_room_is_gone(tmp_path):
    with pytest.raises(GatherError, match="keep_free_mib is free, the oldest of sent/ are removed"):
        found(tmp_path, 7, T_US)


def test_a_device_says_how_many_recordings_it_still_has(tmp_path):
    source = FolderSource(tmp_path, SELECTION, 0.0)
    assert source.kept() == 0
    put(tmp_path / "sent", "shot-0007.npy", 1)
    put(tmp_path / "sent", "shot-0008.npy", 2)
    assert source.kept() == 2
    (tmp_path / "sent" / "shot-0007.npy").unlink()
    assert source.kept() == 1


# In the loop of a device, over ZeroMQ.


class Asking:
    """A centre that acknowledges latents and, once it has them all, fetches event 2; ``data`` is what came of it."""

    def __init__(self, latents, event=2):
        self.latents, self.event = latents, event
        self.kinds, self.data, self.part, self.node = [], b"", None, None
        self.reason = ""

    def __call__(self, record):
        self.kinds.append(record.type)
        if record.type == packet.LATENT:
            answers = [packet.acknowledge(record)]
            if self.kinds.count(packet.LATENT) == self.latents:
                answers.append(self._say(record, Fetch(0), self.event))
            return answers
        message = decode_message(record.payload)
        if isinstance(message, NoRecording):
            self.reason = message.reason
            self.node.stop()
            return self._say(record, End(), record.event)
        if isinstance(message, Part):
            self.part = message
        else:
            self.data += message.data
        if len(self.data) == self.part.part_bytes:
            self.node.stop()
            return self._say(record, End(), record.event)
        return self._say(record, PieceRequest(self.part.sha256, len(self.data), 32_768), record.event)

    @staticmethod
    def _say(record, message, event):
        answer = packet.Record(
            packet.RECORDING, record.device, record.survey, record.boot, record.sequence, event
        )
        answer.payload = encode_message(message)
        return answer


def fetch_from(config, asking):
    with FakeCentre(asking) as centre:
        run_device(config(centre.endpoint, drain=False), lambda node: setattr(asking, "node", node))


def test_a_device_sends_a_replayed_event_after_its_latents(config, gathers):
    asking = Asking(latents=4)
    fetch_from(config, asking)
    assert decode_part(asking.data, gathers.size).samples.tobytes() == gathers[1][:, :, 3:].tobytes()
    assert asking.kinds[:4] == [packet.LATENT] * 4


def test_a_device_sends_a_recording_out_of_its_folder(config, gathers, tmp_path):
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for number, gather in enumerate(gathers, start=1):
        np.save(incoming / f"shot-{number}.npy", gather)
        os.utime(incoming / f"shot-{number}.npy", (time.time() - 60, time.time() - 60))
    asking = Asking(latents=4, event=3)
    source = SourceSection("folder", path=incoming, poll_s=0.01)
    fetch_from(lambda endpoint, drain: config(endpoint, drain=drain, source=source), asking)
    assert decode_part(asking.data, gathers.size).samples.tobytes() == gathers[2][:, :, 3:].tobytes()
    assert (incoming / "sent" / "shot-3.npy").exists()


def test_an_event_that_was_not_recorded_is_not_available(config):
    asking = Asking(latents=4, event=9)
    fetch_from(config, asking)
    assert asking.reason == "event 9: not recorded here; this replay has recorded 1 to 4"
