"""A live SeedLink stream cut at the shots into gathers, from a stand-in server that behaves as ringserver does."""

import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from seedlink_server import Packet, SeedLinkServer
from waiting import wait_until

import epic
from physics.acquisition import Acquisition
from physics.files import live_buffers
from physics.files.field_files import FieldFileError
from physics.files.live_buffers import Channel, Record
from physics.files.seedlink import Following, SeedLinkError, follow
from physics.files.seedlink_session import parse_address
from physics.files.shots_file import ShotsFile
from physics.files.times import format_time, parse_time_ns

obspy = pytest.importorskip("obspy", reason="the extra geo is not installed")
pytest.importorskip("pymseed", reason="the extra geo is not installed")

SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_depth": 20,
        "n_width": 20,
        "n_time": 200,
        "source_cells": [0, 5],
        "receiver_cells": list(range(6)),
        "device_receivers": [[0, 1, 2], [3, 4, 5]],
    }
)
NS = 1_000_000_000
START = obspy.UTCDateTime("2026-11-25T10:00:00")
NAMES = [f"XX.R{n:02d}.00.EHZ" for n in range(6)]
# Shots of an event are 4 s apart, events 20 s.
TIMES = {event: [START + 20.0 * event + 5.0 + 4.0 * source for source in range(2)] for event in range(4)}


@pytest.fixture
def server():
    with SeedLinkServer() as server:
        yield server


@pytest.fixture
def line(tmp_path):
    """Files that say where receivers are and when shots were; ``shoot(events)`` adds shots."""

    class Line:
        geometry, shots, out = tmp_path / "geometry.toml", tmp_path / "shots.csv", tmp_path / "incoming"

        def shoot(self, *events):
            with self.shots.open("a") as file:
                for event in events:
                    for source, shot in enumerate(TIMES[event]):
                        file.write(f"{event},{source},{shot}\n")

        def following(self, server, **changes):
            return Following(server.address, self.geometry, self.shots, self.out, SURVEY, **changes)

    line = Line()
    line.geometry.write_text(f"receivers = {json.dumps(NAMES)}\n")
    line.shots.write_text("event,source,time\n")
    return line


def gather(event):
    """Whole numbers, as digitizers count: Steim-2 keeps them exactly."""
    return np.random.default_rng(event).integers(-1000, 1000, SURVEY.gather_shape).astype(np.float32)


def recorded(event, skip=(), hole=()):
    """20 s of all receivers with the event's shots in it; ``hole``: without the second shot's last half."""
    start = TIMES[event][0] - 5.0
    stream = obspy.Stream()
    for receiver, name in enumerate(NAMES):
        if receiver in skip:
            continue
        samples = np.zeros(20_000, np.int32)
        for source, shot in enumerate(TIMES[event]):
            first = round((shot - start) / SURVEY.dt_s)
            samples[first : first + SURVEY.n_time] = gather(event)[source, :, receiver]
        network, station, location, channel = name.split(".")
        header = {"network": network, "station": station, "location": location, "channel": channel}
        trace = obspy.Trace(samples, {**header, "delta": SURVEY.dt_s, "starttime": start})
        pieces = [trace]
        if receiver in hole:
            shot = TIMES[event][1]
            pieces = [trace.slice(endtime=shot + 0.1), trace.slice(starttime=shot + 0.15)]
        for piece in pieces:
            stream.append(piece)
    return stream


def read(line, event):
    return np.load(line.out / f"shot-{event:06d}.npy")


def test_gathers_come_out_as_they_were_recorded_and_shots_may_come_later(server, line):
    said, threads = [], []
    line.shoot(0)
    for part in (recorded(0), recorded(1)):
        server.feed(part)
    threads.append(
        threading.Thread(target=lambda: follow(line.following(server), 2, said.append), daemon=True)
    )
    threads[0].start()
    wait_until(lambda: said, what="the first event")
    line.shoot(1)
    threads[0].join(20.0)
    assert said == [f"event {event}: 6 receivers, peak {abs(gather(event)).max():.3g}" for event in (0, 1)]
    for event in (0, 1):
        np.testing.assert_array_equal(read(line, event), gather(event))
    steps = json.loads((line.out / "steps" / "shot-000000.json").read_text())["steps"]
    assert steps[0].startswith(f"6 of 6 receivers of {server.address}, cut at 2026-11-25T10:00:05")
    assert "TIME 2026,11,25,10,00,04" in server.asked, "from before the first shot on, though it is past"


def test_a_device_asks_for_its_own_receivers_alone(server, line):
    line.shoot(2)
    server.feed(recorded(2))
    assert follow(line.following(server, device=1, gain=2.0), 1, lambda said: None) == 1
    np.testing.assert_array_equal(read(line, 2), 2.0 * gather(2)[:, :, 3:])
    assert [command for command in server.asked if command.startswith("STATION")] == [
        f"STATION R{n:02d} XX" for n in (3, 4, 5)
    ]


def test_who_lags_or_has_a_gap_is_silent_and_the_rest_is_kept(server, line):
    said = []
    line.shoot(0)
    server.feed(recorded(0, skip=(1,), hole=(4,)))
    follow(line.following(server, wait_s=0.5), 1, said.append)
    assert said == [f"event 0: 6 receivers, 2 silent, peak {abs(read(line, 0)).max():.3g}"]
    expected = gather(0)
    expected[:, :, [1, 4]] = 0.0
    np.testing.assert_array_equal(read(line, 0), expected)
    steps = json.loads((line.out / "steps" / "shot-000000.json").read_text())["steps"]
    assert f"{NAMES[1]} is not on the server" in steps
    assert any(f"{NAMES[4]} has a gap" in step for step in steps)


def following_thread(line, server, events, said, notices=None, **changes):
    """`follow` on a thread that is over when ``events`` are dealt with."""
    told = [] if notices is None else notices
    thread = threading.Thread(
        target=lambda: follow(line.following(server, **changes), events, said.append, told.append),
        daemon=True,
    )
    thread.start()
    return thread


@pytest.fixture
def quick(monkeypatch):
    """Connections are tried again soon, and a silent server is given up soon."""
    monkeypatch.setattr("physics.files.seedlink.AGAIN_S", 0.2)
    monkeypatch.setattr("physics.files.seedlink_session.SILENCE_S", 1.0)
    monkeypatch.setattr("physics.files.seedlink_session.REPLY_S", 0.5)


def test_after_a_cut_it_goes_on_where_it_was_and_says_so(server, line, quick):
    said, notices = [], []
    line.shoot(0, 1)
    server.feed(recorded(0))
    thread = following_thread(line, server, 2, said, notices)
    wait_until(lambda: said, what="the first event")
    server.cut()
    server.feed(recorded(1))
    thread.join(30.0)
    assert len(said) == 2
    np.testing.assert_array_equal(read(line, 1), gather(1))
    assert server.asked.count("HELLO") >= 2
    assert any("connection lost" in notice for notice in notices)
    assert any("connected again" in notice for notice in notices)


@pytest.mark.parametrize("kept", [None, 20])
def test_a_server_that_restarts_and_numbers_its_packets_from_1_again_loses_nothing(server, line, quick, kept):
    """The numbers of the new ring are those of other packets: after the restart they begin again."""
    said = []
    line.shoot(0, 1)
    server.feed(recorded(0))
    thread = following_thread(line, server, 2, said)
    wait_until(lambda: said, what="the first event")
    server.stop()
    server.feed(recorded(1))
    server.restart(kept and len(server.packets(recorded(1))) + kept)
    thread.join(30.0)
    assert said[1:] == [f"event 1: 6 receivers, peak {abs(gather(1)).max():.3g}"]
    np.testing.assert_array_equal(read(line, 1), gather(1))
    assert not any(command.startswith("DATA ") for command in server.asked), "by time, never by number"


def test_where_the_stream_does_not_go_on_where_it_was_all_is_asked_for(line, quick):
    """Here ``TIME`` puts the reader too far on once."""
    with SeedLinkServer() as server:
        said, notices = [], []
        line.shoot(0, 1)
        server.feed(recorded(0))
        thread = following_thread(line, server, 2, said, notices)
        wait_until(lambda: said, what="the first event")
        server.stop()
        server.feed(recorded(1))
        server.skips = 60
        server.restart()
        thread.join(30.0)
    np.testing.assert_array_equal(read(line, 1), gather(1))
    assert any("asking from the start of the server's buffer" in notice for notice in notices)
    assert "DATA 000002" in server.asked, "the packet behind the first, which the server has told"


def test_a_server_that_ignores_the_time_is_asked_for_all_it_has(line):
    with SeedLinkServer() as server:
        server.ignores_time = True
        said, notices = [], []
        line.shoot(0)
        packets = server.packets(recorded(0))
        # All but the last records of each channel are there before.
        last = {packet.name: packet for packet in packets}
        server.feed_packets([Packet("XX.NONE.00.EHZ", 0, 1, packets[0].data)])
        server.feed_packets([packet for packet in packets if packet is not last[packet.name]])
        thread = following_thread(line, server, 1, said, notices, wait_s=1.0)
        wait_until(lambda: "END" in server.asked, what="the request")
        time.sleep(0.1)
        server.feed_packets(list(last.values()))
        thread.join(10.0)
    assert said == [f"event 0: 6 receivers, peak {abs(gather(0)).max():.3g}"]
    np.testing.assert_array_equal(read(line, 0), gather(0))
    assert any("asking from the start of the server's buffer" in notice for notice in notices)


@pytest.mark.slow
def test_one_record_that_comes_after_its_successors_silences_nobody(server, line):
    said = []
    line.shoot(0)
    packets = server.packets(recorded(0))
    second = (TIMES[0][0] + 0.05).ns
    (late,) = (p for p in packets if p.name == NAMES[2] and p.start_ns <= second <= p.end_ns)
    server.feed_packets([p for p in packets if p is not late])
    thread = following_thread(line, server, 1, said, wait_s=2.0)
    time.sleep(0.8)
    assert not said
    server.feed_packets([late])
    thread.join(10.0)
    assert said == [f"event 0: 6 receivers, peak {abs(gather(0)).max():.3g}"]
    np.testing.assert_array_equal(read(line, 0), gather(0))


@pytest.mark.slow
def test_a_backlog_that_comes_channel_after_channel_silences_nobody(server, line):
    """It takes longer than ``wait_s`` as a whole, while the first channels are 10 s past the event."""
    said = []
    line.shoot(0)
    thread = following_thread(line, server, 1, said, wait_s=1.5)
    wait_until(lambda: "END" in server.asked, what="the request")
    for trace in recorded(0):
        server.feed([trace])
        time.sleep(0.5)
    thread.join(10.0)
    assert said == [f"event 0: 6 receivers, peak {abs(gather(0)).max():.3g}"]
    np.testing.assert_array_equal(read(line, 0), gather(0))


@pytest.mark.slow
def test_a_backlog_that_the_server_holds_is_waited_for_however_slow_it_comes(server, line):
    """The server has said that it has data of all channels: the last channel is outstanding."""
    said = []
    line.shoot(0)
    server.feed(recorded(0), order="channel")
    server.pause_s = 0.25
    server.pause_every = len(server.packets(recorded(0)[:1])) // 2
    thread = following_thread(line, server, 1, said, wait_s=0.2)
    thread.join(20.0)
    assert said == [f"event 0: 6 receivers, peak {abs(gather(0)).max():.3g}"]


def test_a_shot_that_is_logged_after_its_data_came_is_asked_for(server, line):
    said = []
    server.feed(recorded(0))
    thread = following_thread(line, server, 1, said)
    wait_until(lambda: "END" in server.asked, what="the request")
    line.shoot(0)
    thread.join(10.0)
    np.testing.assert_array_equal(read(line, 0), gather(0))


def test_a_shot_that_is_logged_when_its_data_are_held_no_more_is_asked_for(server, line, monkeypatch):
    monkeypatch.setattr("physics.files.live_buffers.HELD_S", 5)
    monkeypatch.setattr("physics.files.seedlink.HELD_S", 5)
    said = []
    for event in (0, 1, 2):
        server.feed(recorded(event))
    line.shoot(2)
    thread = following_thread(line, server, 2, said)
    wait_until(lambda: said, what="the latest event")
    line.shoot(0)
    thread.join(10.0)
    np.testing.assert_array_equal(read(line, 0), gather(0))


def changed(event, receiver, change):
    """`recorded`, with ``change(trace)`` in place of a receiver's trace."""
    stream = recorded(event)
    stream.traces[receiver] = change(stream[receiver])
    return stream


def at_another_rate(rate):
    def change(trace):
        trace.stats.sampling_rate = rate
        return trace

    return change


def with_nan(trace):
    trace.data = trace.data.astype(np.float32)
    trace.data[5_050] = np.nan
    return trace


def as_float(trace):
    trace.data = trace.data.astype(np.float32)
    return trace


def as_text(trace):
    trace.data = np.full(len(trace.data), b"x", dtype="|S1")
    return trace


def of_2099(trace):
    trace.stats.starttime = obspy.UTCDateTime("2099-01-01")
    return trace


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(at_another_rate(500.0), "is sampled at 500 Hz, the line at 1000 Hz", id="500 Hz"),
        pytest.param(with_nan, "holds NaN", id="NaN"),
        pytest.param(as_text, "a record holds text", id="text"),
        pytest.param(of_2099, "its clock is wrong", id="clock of 2099"),
    ],
)
def test_a_bad_receiver_is_silent_with_its_reason_and_the_event_is_written(server, line, change, reason):
    notices = []
    line.shoot(0)
    server.feed(changed(0, 3, change))
    follow(line.following(server, wait_s=0.3), 1, lambda said: None, notices.append)
    expected = gather(0)
    expected[:, :, 3] = 0.0
    np.testing.assert_array_equal(read(line, 0), expected)
    assert any(NAMES[3] in notice and reason in notice for notice in notices), notices
    assert any(NAMES[3] in notice and "silent" in notice for notice in notices), notices


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(at_another_rate(999.9999), id="999.9999 Hz"),
        pytest.param(as_float, id="float32"),
    ],
)
def test_what_can_be_used_is_used(server, line, change):
    line.shoot(0)
    server.feed(changed(0, 3, change))
    follow(line.following(server, wait_s=0.3), 1, lambda said: None)
    np.testing.assert_allclose(read(line, 0), gather(0), atol=5.0)


def test_records_of_any_length_and_of_miniseed_3_are_read(server, line):
    import pymseed

    line.shoot(0)
    stream = recorded(0)
    server.feed(stream[:2], reclen=256)
    server.feed(stream[2:4], reclen=4096)
    packets = []
    for packet in server.packets(stream[4:]):
        record = pymseed.MS3Record.parse(packet.data, unpack_data=True)
        record.formatversion = 3
        record.reclen = -1
        (data,) = record.generate()
        packets.append(Packet(packet.name, packet.start_ns, packet.end_ns, data))
    server.feed_packets(packets)
    follow(line.following(server, wait_s=0.3), 1, lambda said: None)
    np.testing.assert_array_equal(read(line, 0), gather(0))


def test_a_damaged_record_is_left_out_and_told(server, line):
    notices = []
    line.shoot(0)
    packets = server.packets(recorded(0))
    hit = next(p for p in packets if p.name == NAMES[1] and p.start_ns >= TIMES[0][0].ns)
    damaged = Packet(hit.name, hit.start_ns, hit.end_ns, hit.data[:128] + b"\xff" * 384)
    server.feed_packets([damaged if p is hit else p for p in packets])
    follow(line.following(server, wait_s=0.3), 1, lambda said: None, notices.append)
    assert np.any(read(line, 0)[:, :, 0])
    assert not np.any(read(line, 0)[:, :, 1])
    assert any(f"{NAMES[1]}: a record cannot be decoded" in notice for notice in notices)


def test_the_reason_of_an_event_that_is_not_written_is_kept_and_it_is_tried_again(server, line):
    said = []
    line.shoot(0, 1)
    server.feed(recorded(1))
    follow(line.following(server, wait_s=0.3), 2, said.append)
    why = f"event 0: not written; no receiver has its samples ({NAMES[0]} has nothing from 2026-"
    assert any(line.startswith(why) for line in said), said
    kept = json.loads((line.out / "steps" / "shot-000000.json").read_text())
    assert "no receiver has its samples" in kept["not_written"]
    server.feed(recorded(0))
    assert follow(line.following(server, wait_s=0.3), 1, said.append) == 1
    np.testing.assert_array_equal(read(line, 0), gather(0))


def test_a_misspelt_receiver_is_told_with_the_nearest_name(server, line):
    notices = []
    line.geometry.write_text(f"receivers = {json.dumps(['XX.R00.00.BHZ', *NAMES[1:]])}\n")
    line.shoot(0)
    server.feed(recorded(0))
    follow(line.following(server, wait_s=0.3), 1, lambda said: None, notices.append)
    assert f"{server.address}: has no XX.R00.00.BHZ; nearest to XX.R00.00.BHZ is XX.R00.00.EHZ" in notices
    assert "event 0: silent: XX.R00.00.BHZ is not on the server" in notices


def test_a_name_that_a_server_gives_is_not_obeyed_by_the_terminal(server, line, tmp_path, capsys):
    """The nearest name to a misspelt one is the server's."""
    line.geometry.write_text(f"receivers = {json.dumps(['XX.R00.00.BHZ', *NAMES[1:]])}\n")
    line.shoot(0)
    packets = server.packets(recorded(0))
    server.feed_packets(packets)
    first = packets[0]
    server.feed_packets([Packet("XX.R00.00.BH\u202eZ", first.start_ns, first.end_ns, first.data)])
    survey = tmp_path / "manifest.json"
    survey.write_text(json.dumps({"acquisition": SURVEY.to_dict()}))
    command = ["data", "follow", server.address, "--geometry", str(line.geometry), "--shots", str(line.shots)]
    command += ["--out", str(line.out), "--events", "1", "--survey", str(survey), "--wait-s", "0.3"]
    assert epic.main(command) == 0
    err = capsys.readouterr().err
    assert "nearest to XX.R00.00.BHZ is XX.R00.00.BH\\u202eZ" in err and "\u202e" not in err


def test_a_server_without_list_or_past_is_followed_live(line):
    with SeedLinkServer(gives_info=False, takes_time=False) as server:
        notices, said = [], []
        line.shoot(0)
        thread = following_thread(line, server, 1, said, notices, wait_s=1.0)
        wait_until(lambda: "END" in server.asked, what="the request")
        time.sleep(0.1)
        server.feed(recorded(0))
        thread.join(10.0)
    np.testing.assert_array_equal(read(line, 0), gather(0))
    assert any("does not send past data" in notice for notice in notices)


def test_a_server_that_falls_silent_is_told_and_connected_to_again(line, quick):
    with SeedLinkServer() as server:
        said, notices = [], []
        line.shoot(0)
        thread = following_thread(line, server, 1, said, notices, wait_s=0.3)
        wait_until(lambda: "END" in server.asked, what="the request")
        server.is_mute = True
        wait_until(lambda: any("not a byte" in notice for notice in notices), what="the notice")
        server.is_mute = False
        server.feed(recorded(0))
        thread.join(10.0)
    assert said == [f"event 0: 6 receivers, peak {abs(gather(0)).max():.3g}"]


def test_what_was_written_before_is_not_written_again(server, line):
    line.shoot(0)
    server.feed(recorded(0))
    follow(line.following(server), 1, lambda said: None)
    (line.out / "shot-000000.npy").unlink()  # as a device does that has taken it
    line.shoot(1)
    server.feed(recorded(1))
    follow(line.following(server), 1, lambda said: None)
    assert [path.name for path in line.out.glob("*.npy")] == ["shot-000001.npy"]


@pytest.mark.parametrize("cut", ["1", "12", "\0\0\0"])
def test_a_number_that_a_power_loss_cut_is_no_event(server, line, cut):
    """The line of event 123 was cut to 1 or 12; events 1 and 12 are not written."""
    line.out.mkdir(exist_ok=True)
    (line.out / ".followed").write_text(f"7\n{cut}")
    line.shoot(0)
    server.feed(recorded(0))
    follow(line.following(server), 1, lambda said: None)
    assert (line.out / ".followed").read_text() == "7\n0\n"


def test_the_steps_of_an_event_appear_whole(server, line, monkeypatch):
    def cut(path, text):
        path.write_bytes(text[:3].encode())
        raise KeyboardInterrupt

    line.shoot(0)
    server.feed(recorded(0))
    monkeypatch.setattr("pathlib.Path.write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        follow(line.following(server), 1, lambda said: None)
    assert not list((line.out / "steps").iterdir())


def test_a_device_process_takes_what_is_written(server, line):
    """The folder is one that a device watches: its own part goes through `Selection` and is no error."""
    from firmware_py.sources.recordings import FolderSource, Selection

    line.shoot(3)
    server.feed(recorded(3))
    follow(line.following(server, device=0), 1, lambda said: None)
    source = FolderSource(line.out, Selection(SURVEY.gather_shape, (0, 1, 2)), 0.0)
    found = []
    wait_until(lambda: found.append(source.poll()) or found[-1], what="the recording")
    assert found[-1].event == 3
    np.testing.assert_array_equal(found[-1].part, gather(3)[:, :, :3])


@pytest.mark.parametrize(
    ("break_it", "error", "said"),
    [
        (lambda line: line.shots.unlink(), FieldFileError, "shots.csv: cannot be read"),
        (
            lambda line: line.geometry.write_text("receivers = []"),
            FieldFileError,
            "a list of 6 receivers, got 0",
        ),
        (
            lambda line: line.geometry.write_text(f"receivers = {json.dumps(['XX-R00', *NAMES[1:]])}"),
            FieldFileError,
            "receiver 'XX-R00': expected a SEED id",
        ),
        (
            lambda line: line.geometry.write_text(f"receivers = {json.dumps([NAMES[1], *NAMES[1:]])}"),
            FieldFileError,
            "XX.R01.00.EHZ twice",
        ),
    ],
)
def test_files_that_are_none_are_told(server, line, break_it, error, said):
    break_it(line)
    with pytest.raises(error, match=said):
        follow(line.following(server), 1, lambda said: None)


def test_where_no_server_answers_it_says_so(line):
    class Nobody:
        address = "127.0.0.1:9"

    with pytest.raises(SeedLinkError, match="127.0.0.1:9: .*expected a SeedLink server"):
        follow(line.following(Nobody), 1, lambda said: None)


def test_where_a_server_never_answers_it_says_so(line, quick):
    with (
        SeedLinkServer(is_mute=True) as server,
        pytest.raises(SeedLinkError, match=r"no answer within 0\.5 s"),
    ):
        follow(line.following(server), 1, lambda said: None)


def test_where_another_server_answers_it_says_so(line, quick):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        class Http:
            address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer():
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(SeedLinkError, match="got 'HTTP/1.1 400 Bad Request' in answer to HELLO"):
            follow(line.following(Http), 1, lambda said: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("line.example.org", ("line.example.org", 18000)),
        ("line.example.org:18001", ("line.example.org", 18001)),
        ("seedlink://line.example.org:18001/", ("line.example.org", 18001)),
        ("SeedLink://10.0.0.7", ("10.0.0.7", 18000)),
        ("[2001:db8::7]:18001", ("2001:db8::7", 18001)),
        ("seedlink://[::1]", ("::1", 18000)),
        ("::1", ("::1", 18000)),
        (":18001", ("localhost", 18001)),
    ],
)
def test_addresses_in_all_their_forms(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "http://line:80", "line:port", "line:99999", "line:0", "two words", "[::1", "user@line"]
)
def test_what_is_no_address_is_told(text):
    with pytest.raises(SeedLinkError, match="expected HOST, HOST:PORT"):
        parse_address(text)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_server_on_ipv6_is_followed(line):
    try:
        server = SeedLinkServer("::1")
    except OSError:
        pytest.skip("::1 cannot be listened on")
    with server:
        line.shoot(0)
        server.feed(recorded(0))

        class Url:
            address = f"seedlink://{server.address}"

        follow(line.following(Url), 1, lambda said: None)
    np.testing.assert_array_equal(read(line, 0), gather(0))


FIRST, SECOND = "2026-11-29T03:00:00", "2026-11-29T03:00:02"
FIRST_NS, SECOND_NS = (obspy.UTCDateTime(text).ns for text in (FIRST, SECOND))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"event,source,time\n1,0,{FIRST}\n1,1,{SECOND}\n".encode(), id="plain"),
        pytest.param(f"event,source,time\n1,0,{FIRST}\n1,1,{SECOND}".encode(), id="no last newline"),
        pytest.param(f"event,source,time\n1,1,{FIRST}\n1,2,{SECOND}\n".encode(), id="sources from 1"),
        pytest.param(f"1,0,{FIRST_NS // NS}\n1,1,{SECOND_NS // NS}.0\n".encode(), id="seconds since 1970"),
        pytest.param(
            f"event,source,time\n1,0,{FIRST}\n1,1,{SECOND}\n".encode("utf-8-sig"), id="byte order mark"
        ),
        pytest.param(f"event,source,time\n1,0,{FIRST}\n1,1,{SECOND}\n".encode("utf-16"), id="utf-16"),
        pytest.param(f"Event,SOURCE,Time\n1,0,{FIRST}\n1,1,{SECOND}\n".encode(), id="capitals"),
        pytest.param(f"1,0,{FIRST},left\n1,1,{SECOND},right\n".encode(), id="a fourth column"),
        pytest.param(f"Note,Time,Event,Source\na,{FIRST},1,0\nb,{SECOND},1,1\n".encode(), id="other order"),
        pytest.param(
            f"event;source;time\r\n1;0;{FIRST}\r\n1;1;{SECOND}\r\n".encode(), id="semicolons, CR LF"
        ),
        pytest.param(f"1;0;{FIRST_NS // NS},0\n1;1;{SECOND_NS // NS},0\n".encode(), id="decimal comma"),
        pytest.param(f"1,0,{FIRST},left; near\n1,1,{SECOND},\n".encode(), id="semicolon in a note"),
        pytest.param(f"1,0,{FIRST},5 °C\n1,1,{SECOND},\n".encode("latin-1"), id="another code page"),
        pytest.param(f'"1","0","{FIRST}"\n"1","1","{SECOND}"\n'.encode(), id="quotes"),
        pytest.param(f"# x\n\n 1 , 0 , {FIRST} \n1,1,{SECOND}\n".encode(), id="comment and blanks"),
        pytest.param(f"1,0,{FIRST}Z\n1,1,2026-11-29T04:00:02+01:00\n".encode(), id="time zones"),
        pytest.param(b"1,0,2026/11/29 03:00:00\n1,1,2026-333T03:00:02\n", id="slashes, day of the year"),
    ],
)
def test_shots_in_every_form_that_is_written(tmp_path, monkeypatch, content):
    monkeypatch.setattr("physics.files.shots_file.SETTLED_S", 0.0)
    path = tmp_path / "shots.csv"
    path.write_bytes(content)
    shots = ShotsFile(path, 2, lambda said: None)
    shots.read()
    shots.read()
    assert shots.complete == {1: (FIRST_NS, SECOND_NS)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2,0", "line 3 is left out: expected event,source,time, got '2,0'"),
        ("two,0,2026-11-29T03:00:00", "expected an event's number, got 'two'"),
        ("-2,0,2026-11-29T03:00:00", "expected an event's number, got '-2'"),
        ("2,7,2026-11-29T03:00:00", "expected a source, 0 to 1, got '7'"),
        ("2,0,noon", "expected a time in ISO 8601 or seconds since 1970, got 'noon'"),
        ("2,0,2026-11-29T25:00:00", "got '2026-11-29T25:00:00'"),
        ("2,0,1795", "in the year 1970"),
        ("2,0,1795-11-29T03:00:00", "in the year 1795"),
        ("2,0,1e999", "seconds since 1970"),
        ("2,0," + 200_000 * "5", "field larger than field limit"),
    ],
)
def test_one_bad_line_is_told_once_and_the_others_count(tmp_path, line, said):
    path, notices = tmp_path / "shots.csv", []
    path.write_text(f"1,0,{FIRST}\n1,1,{SECOND}\n{line}\n")
    shots = ShotsFile(path, 2, notices.append)
    shots.read()
    path.write_text(path.read_text() + f"3,0,{FIRST}\n3,1,{SECOND}\n")
    shots.read()
    assert set(shots.complete) == {1, 3}
    assert len(notices) == 1
    assert said in notices[0]


def test_a_line_that_is_being_written_is_waited_for(tmp_path):
    path = tmp_path / "shots.csv"
    path.write_text(f"1,0,{FIRST}\n1,1,2026-11-29T03:00:0")
    shots = ShotsFile(path, 2, lambda said: None)
    shots.read()
    assert not shots.complete
    path.write_text(f"1,0,{FIRST}\n1,1,{SECOND}\n")
    shots.read()
    assert shots.complete == {1: (FIRST_NS, SECOND_NS)}


def test_sources_that_an_event_lacks_and_mixed_counting_are_told(server, line):
    notices = []
    line.shots.write_text(f"0,0,{TIMES[0][0]}\n0,2,{TIMES[0][1]}\n1,0,{TIMES[1][0]}\n1,1,{TIMES[1][1]}\n")
    server.feed(recorded(1))
    follow(line.following(server), 1, lambda said: None, notices.append)
    assert any("expected sources 0 to 1, got 2 as well as 0" in notice for notice in notices)
    np.testing.assert_array_equal(read(line, 1), gather(1))


def test_a_day_that_the_year_lacks_is_refused():
    assert format_time(parse_time_ns("2028-366T10:00:00")) == "2028-12-31T10:00:00Z"
    for day in ("2026-366T10:00:00", "2028-367", "2026-000", "0000-001"):
        with pytest.raises(ValueError, match=r"expected a day of the year from 1 to 36[56], got"):
            parse_time_ns(day)


def test_times_are_exact_to_the_nanosecond():
    assert parse_time_ns("2026-11-29T03:00:00.123456789Z") % NS == 123_456_789
    assert parse_time_ns("1795921200.000000001") == 1_795_921_200_000_000_001
    assert format_time(parse_time_ns("2026-11-29T03:00:00.25")) == "2026-11-29T03:00:00.25Z"


def test_what_is_held_of_a_channel_is_bounded():
    channel = Channel("XX.R00.00.EHZ")
    samples = np.zeros(100, np.float32)
    for n in range(5_000):
        channel.add(Record(channel.name, n * NS // 10, 1000.0, samples), lambda start, end: False)
    held = len(channel._recent)
    assert held <= 10 * live_buffers.HELD_S + 2


def test_a_channel_is_cut_between_its_samples():
    channel = Channel("XX.R00.00.EHZ")
    for n in range(4):
        ramp = np.arange(100 * n, 100 * (n + 1), dtype=np.float32)
        channel.add(Record(channel.name, NS + n * NS // 10, 1000.0, ramp), lambda start, end: False)
    rate, traces = channel.cut((NS + 50_250_000, NS + 150_000_000), 0.1)
    assert rate == 1000.0
    np.testing.assert_allclose(traces, [50.25 + np.arange(100), 150.0 + np.arange(100)], atol=1e-3)


def test_the_command(server, line, tmp_path, capsys):
    line.shoot(0)
    server.feed(recorded(0))
    survey = tmp_path / "manifest.json"
    survey.write_text(json.dumps({"acquisition": SURVEY.to_dict()}))
    command = ["data", "follow", server.address, "--geometry", str(line.geometry), "--shots", str(line.shots)]
    command += ["--out", str(line.out), "--events", "1", "--survey", str(survey)]
    assert epic.main(command) == 0
    assert "event 0: 6 receivers" in capsys.readouterr().out
    np.testing.assert_array_equal(read(line, 0), gather(0))


def test_a_device_and_the_commands_load_no_obspy():
    code = (
        "import sys, firmware_py.runtime.node, physics.cli, physics.files.seedlink\n"
        "assert not {'obspy', 'pymseed', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
