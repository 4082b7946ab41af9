"""What a device goes on through: a folder, a disk, a spool or a centre that fails it."""

import errno
import time
from collections import namedtuple

import numpy as np
import pytest
from fake_centre import FakeCentre
from waiting import wait_until

from firmware_py.inference.companding import GatherError
from firmware_py.protocol import packet
from firmware_py.runtime.check import check
from firmware_py.runtime.config import SourceSection
from firmware_py.runtime.node import EARLIEST_CLOCK_S, Node
from firmware_py.storage.spool import SpoolError

pytestmark = pytest.mark.slow


def test_what_a_centre_refused_while_it_was_misconfigured_is_taken_after_a_restart(config):
    answers = [lambda record: packet.refuse(record, "unknown encoder")] * 2 + [packet.acknowledge]
    counted = []
    for answer in answers:
        with FakeCentre(answer) as centre:
            node = Node(config(centre.endpoint))
            statistics = node.run()
        assert sorted(record.event for record in centre.records) == [1, 2, 3, 4]
        counted.append([statistics[name] for name in ("refused", "acknowledged", "waiting")])
    assert counted == [[4, 0, 0], [4, 0, 0], [0, 4, 0]], "each start counts its own"


def test_a_recording_that_cannot_be_moved_is_recorded_once_and_the_device_goes_on(
    tmp_path, config, gathers, start, entries
):
    incoming = tmp_path / "in"
    incoming.mkdir()
    folder = SourceSection("folder", path=incoming, poll_s=0.01)
    with FakeCentre() as centre, start(config(centre.endpoint, source=folder)) as running:
        (incoming / "sent").rmdir()
        (incoming / "sent").write_text("a file where the folder should be")
        for event in (1, 2):
            np.save(incoming / f"{event}.npy", gathers[0])
            wait_until(lambda event=event: event in {r.event for r in centre.records}, what=f"event {event}")
        time.sleep(0.3)
        assert len(entries("recorded")) == 2
        assert not running.finished()
    assert [line["event"] for line in entries("not_moved")] == [1, 2]
    # At the next start it is an error, of `check` as well: the two would be recorded again.
    for begin in (Node, check):
        with pytest.raises(GatherError, match="cannot be moved to its sent/"):
            begin(config(centre.endpoint, source=folder))


def test_a_record_travels_while_the_disk_writes_it_and_its_recording_stays_until_then(
    tmp_path, config, gathers, start, entries, monkeypatch
):
    incoming = tmp_path / "in"
    incoming.mkdir()
    np.save(incoming / "1.npy", gathers[0])
    there = []

    def sync(_):
        wait_until(lambda: centre.records, what="the record before its sync")
        time.sleep(0.1)
        there.append(((incoming / "1.npy").exists(), len(entries("acknowledged"))))

    monkeypatch.setattr("firmware_py.storage.spool.os.fdatasync", sync)
    with FakeCentre() as centre:
        folder = SourceSection("folder", path=incoming, poll_s=0.01)
        with start(config(centre.endpoint, source=folder)):
            wait_until((incoming / "sent" / "1.npy").exists, what="the recording in sent/")
            wait_until(lambda: entries("acknowledged"), what="its acknowledgement")
    assert there == [(True, 0)], "an answer before the sync does not count yet"


def test_a_disk_that_keeps_nothing_ends_the_device_and_the_event_is_sent_again(
    tmp_path, config, gathers, start, monkeypatch
):
    incoming = tmp_path / "in"
    incoming.mkdir()
    np.save(incoming / "1.npy", gathers[0])

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    folder = SourceSection("folder", path=incoming, poll_s=0.01)
    with FakeCentre() as centre:
        with monkeypatch.context() as broken:
            broken.setattr("firmware_py.storage.spool.os.fdatasync", fail)
            with pytest.raises(SpoolError, match="cannot be kept on the disk .Input/output error."):
                Node(config(centre.endpoint, source=folder)).run()
        assert (incoming / "1.npy").exists()
        with start(config(centre.endpoint, source=folder)):
            wait_until((incoming / "sent" / "1.npy").exists, what="the recording in sent/")
            wait_until(lambda: centre.records, what="the event")


def test_what_is_sent_makes_room_before_the_spool_needs_it(tmp_path, config, monkeypatch):
    (tmp_path / "in" / "sent").mkdir(parents=True)
    np.save(tmp_path / "in" / "sent" / "1.npy", np.zeros(1000))
    Free = namedtuple("Free", "free")
    monkeypatch.setattr("firmware_py.sources.processed_files.shutil.disk_usage", lambda _: Free(0))

    def full_unless_room_was_made(*_, **__):
        raise SpoolError("full" if (tmp_path / "in" / "sent" / "1.npy").exists() else "room was made")

    monkeypatch.setattr("firmware_py.runtime.node.Spool", full_unless_room_was_made)
    with pytest.raises(SpoolError, match="room was made"):
        Node(config("tcp://127.0.0.1:9", source=SourceSection("folder", path=tmp_path / "in")))


def test_a_replay_begins_at_its_first_event_after_a_watched_folder_or_other_files(
    tmp_path, config, gathers, start, entries
):
    incoming = tmp_path / "in"
    incoming.mkdir()
    np.save(incoming / "7.npy", gathers[0])
    np.save(tmp_path / "others.npy", gathers[:2])
    folder = SourceSection("folder", path=incoming, poll_s=0.01)
    others = SourceSection("files", (tmp_path / "others.npy",))
    with FakeCentre() as centre:
        with start(config(centre.endpoint, source=folder)):
            wait_until(lambda: centre.records, what="the recording")
        for source, events in ((None, [1, 2, 3, 4]), (None, []), (others, [1, 2]), (others, [])):
            centre.records.clear()
            Node(config(centre.endpoint, source=source)).run()
            assert [record.event for record in centre.records] == events
    assert [line["position"] for line in entries("started")] == [0, 0, 4, 0, 2]


def test_a_fresh_state_without_a_clock_records_nothing_until_it_has_one(config, start, entries, monkeypatch):
    """A re-imaged board without a battery: its clock begins at 1970, and NTP sets it."""
    clock_s = [0]
    monkeypatch.setattr("firmware_py.runtime.node._clock_s", lambda: clock_s[0])
    with FakeCentre() as centre:
        for _ in range(2):
            with start(config(centre.endpoint)):
                time.sleep(0.3)
        assert not centre.records
        with start(config(centre.endpoint)) as running:
            clock_s[0] = int(time.time())
            wait_until(running.finished, what="the replay")
    assert {record.boot for record in centre.records} == {running.node.spool.boot}
    assert running.node.spool.boot >= clock_s[0]
    assert len(entries("no_clock")) >= 2
    assert [line["boot"] for line in entries("boot_changed")] == [running.node.spool.boot]


NOW_US = 1_795_000_000_000_000


@pytest.mark.parametrize(
    ("clock_s", "newest_boot", "expected"),
    [
        pytest.param(0, 0, 1_795_000_000, id="no clock, unknown to the centre: the centre's clock"),
        pytest.param(0, 1_700_000_000, 1_795_000_000, id="no clock, known to the centre"),
        pytest.param(0, 1_799_000_000, 1_799_000_001, id="no clock, the centre knows later boots"),
        pytest.param(1_780_000_000, 1_799_000_000, 1_799_000_001, id="a clock that is behind"),
        pytest.param(1_780_000_000, 0, 1_780_000_000, id="all is well"),
    ],
)
def test_a_start_is_numbered_after_what_the_centre_knows(config, monkeypatch, clock_s, newest_boot, expected):
    monkeypatch.setattr("firmware_py.runtime.node._clock_s", lambda: clock_s)
    node = Node(config("tcp://127.0.0.1:9"))
    node.number_start(newest_boot, NOW_US)
    assert (node.spool.boot, node.control_header.boot) == (expected, expected)
    node.stop()
    node.run()
    assert Node(config("tcp://127.0.0.1:9")).spool.boot == expected + 1


@pytest.mark.parametrize("clock_s", [(1 << 32) - 1, 4_300_000_000])
def test_a_clock_that_fits_into_no_record_is_not_set(config, monkeypatch, clock_s):
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: float(clock_s))
        node = Node(config("tcp://127.0.0.1:9"))
        assert node.spool.boot == 0
        node.number_start(0, clock_s * 1_000_000)
        assert node.spool.boot < EARLIEST_CLOCK_S, "nothing is recorded yet"
        node.stop()
        node.run()
    node = Node(config("tcp://127.0.0.1:9"))
    assert node._is_numbered()
    assert EARLIEST_CLOCK_S <= node.spool.boot <= time.time(), "of the clock that is right again"


def test_the_last_boot_at_the_centre_is_refused_with_advice(config):
    node = Node(config("tcp://127.0.0.1:9"))
    boot = node.spool.boot
    with pytest.raises(packet.PacketError, match="4294967295 .* epic central devices forget 1"):
        node.number_start((1 << 32) - 1, NOW_US)
    assert (node.spool.boot, node.control_header.boot) == (boot, boot)


@pytest.mark.parametrize("how", ["removed", "another in its place"])
def test_a_state_folder_that_goes_ends_the_device_and_keeps_the_recordings(
    tmp_path, config, gathers, start, how
):
    incoming, state = tmp_path / "in", tmp_path / "state"
    incoming.mkdir()
    folder = SourceSection("folder", path=incoming, poll_s=0.01)
    with (
        FakeCentre() as centre,
        pytest.raises(SpoolError, match="removed, or its disk unmounted"),
        start(config(centre.endpoint, source=folder)) as running,
    ):
        np.save(incoming / "1.npy", gathers[0])
        wait_until(lambda: centre.records, what="the first recording")
        state.rename(tmp_path / "lost")
        if how != "removed":
            state.mkdir()
            (state / "spool.sqlite").write_bytes((tmp_path / "lost" / "spool.sqlite").read_bytes())
        np.save(incoming / "2.npy", gathers[0])
        wait_until(running.finished, what="the end")
    assert (incoming / "2.npy").exists()


def test_a_damaged_spool_is_logged_and_the_device_runs(tmp_path, config, entries):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "spool.sqlite").write_bytes(b"not a database at all" * 100)
    with FakeCentre() as centre:
        assert Node(config(centre.endpoint)).run()["acknowledged"] == 4
    (line,) = entries("spool_damaged")
    assert "file is not a database; put aside as" in line["reason"]


def test_a_centre_that_is_away_is_logged_once_an_outage_also_when_nothing_waits(
    tmp_path, config, start, entries
):
    (tmp_path / "in").mkdir()
    folder = SourceSection("folder", path=tmp_path / "in")
    centre = FakeCentre()
    endpoint = centre.endpoint

    def downs():
        return [line["reason"] for line in entries("link_down")]

    with start(config(endpoint, source=folder)) as running:
        link = running.node.link.statistics
        for outage in (1, 2):
            wait_until(lambda outage=outage: link.connections == outage, what="a connection")
            assert len(downs()) == outage - 1
            centre.close()
            wait_until(lambda outage=outage: len(downs()) == outage, what="the outage in the log")
            time.sleep(0.5)
            centre = FakeCentre(endpoint=endpoint)
        wait_until(lambda: link.connections == 3, what="the last connection")
        assert downs() == [f"{endpoint}: no connection; is the centre there?"] * 2
        wait_until(lambda: len(entries("link_up")) == 2, what="the end of the last outage in the log")
    centre.close()


def test_a_key_that_is_rejected_is_logged_within_an_outage_that_was(tmp_path, config, start, entries):
    (tmp_path / "in").mkdir()
    with (
        FakeCentre() as centre,
        start(config(centre.endpoint, source=SourceSection("folder", path=tmp_path / "in"))) as running,
    ):
        statistics = running.node.link.statistics
        wait_until(lambda: statistics.connections, what="the connection")

        def downs():
            return [line["reason"] for line in entries("link_down")]

        statistics.fault = "no connection"
        wait_until(lambda: downs() == ["no connection"], what="the outage in the log")
        statistics.fault = "not allowed"
        statistics.key_rejected = True
        wait_until(lambda: downs() == ["no connection", "not allowed"], what="the reason in the log")
