"""A live SeedLink stream cut at the shots into gathers, from a stand-in server that serves miniSEED records."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from seedlink_server import SeedLinkServer
from waiting import wait_until

import epic
from physics.acquisition import Acquisition
from physics.files.field_files import FieldFileError
from physics.files.seedlink import Following, SeedLinkError, follow

obspy = pytest.importorskip("obspy", reason="the extra geo is not installed")

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
    assert "TIME 2026,11,25,10,0,4" in server.asked, "from before the first shot on, though it is past"


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
    assert any(f"{NAMES[1]} has nothing from" in step for step in steps)
    assert any(f"{NAMES[4]} has a gap" in step for step in steps)


def test_after_a_cut_it_goes_on_where_it_was(server, line, monkeypatch):
    monkeypatch.setattr("physics.files.seedlink.SILENCE_S", 1)
    monkeypatch.setattr("physics.files.seedlink.AGAIN_S", 0.3)
    said = []
    line.shoot(0, 1)
    server.feed(recorded(0))
    thread = threading.Thread(target=lambda: follow(line.following(server), 2, said.append), daemon=True)
    thread.start()
    wait_until(lambda: said, what="the first event")
    server.cut()
    server.feed(recorded(1))
    thread.join(30.0)
    assert len(said) == 2
    np.testing.assert_array_equal(read(line, 1), gather(1))
    assert server.asked.count("HELLO") >= 2


def test_what_was_written_before_is_not_written_again(server, line):
    line.shoot(0)
    server.feed(recorded(0))
    follow(line.following(server), 1, lambda said: None)
    (line.out / "shot-000000.npy").unlink()  # as a device does that has taken it
    line.shoot(1)
    server.feed(recorded(1))
    follow(line.following(server), 1, lambda said: None)
    assert [path.name for path in line.out.glob("*.npy")] == ["shot-000001.npy"]


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
        (
            lambda line: line.shots.write_text("0,0\n"),
            FieldFileError,
            "line 1: expected event,source,time, got '0,0'",
        ),
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
        "assert not {'obspy', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
