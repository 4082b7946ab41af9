"""Where recordings come from."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import SHAPE

from firmware_py.inference.companding import GatherError
from firmware_py.sources.recordings import FileSource, FolderSource, Selection, open_gathers

MINE = Selection(SHAPE, (3, 4, 5))


def drain(source, polls=10):
    found = (source.poll() for _ in range(polls))
    return [recording for recording in found if recording]


def save(path, array):
    np.save(path, array)
    return path


def test_files_are_replayed_in_order_as_numbered_events(tmp_path, gathers):
    paths = [save(tmp_path / "a.npy", gathers[:3]), save(tmp_path / "b.npy", gathers[3].astype(np.float16))]
    source = FileSource(paths, MINE, 0.0, 0, 0)
    recordings = drain(source)
    assert [recording.event for recording in recordings] == [1, 2, 3, 4]
    np.testing.assert_array_equal(recordings[1].part, gathers[1][:, :, 3:])
    np.testing.assert_allclose(recordings[3].part, gathers[3][:, :, 3:], atol=2e-3)
    assert source.exhausted


def test_replay_goes_on_where_it_stopped_and_ends_at_its_limit(tmp_path, gathers):
    source = FileSource([save(tmp_path / "a.npy", gathers)], MINE, 0.0, 3, 1)
    assert [recording.event for recording in drain(source)] == [2, 3]


def test_an_interval_holds_the_next_event_back(tmp_path, gathers):
    source = FileSource([save(tmp_path / "a.npy", gathers)], MINE, 60.0, 0, 0)
    assert len(drain(source)) == 1
    assert not source.exhausted


@pytest.mark.parametrize("how", ["missing", "truncated", "shape", "type"])
def test_files_that_are_no_gathers(tmp_path, gathers, how):
    path = save(tmp_path / "a.npy", gathers)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "shape":
        save(path, gathers[:, :, :50])
    else:
        save(path, np.zeros(SHAPE, int))
    with pytest.raises(GatherError, match=r"a.npy: .*(expected|not a whole)"):
        drain(FileSource([path], MINE, 0.0, 0, 0))


def test_a_watched_folder(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    save(tmp_path / "shot-0012.npy", gathers[0])
    save(tmp_path / "shot-0011.npy", gathers[1][:, :, 3:])
    assert source.poll() is None, "a file counts once its size has settled"
    first, second = drain(source, 2)
    assert (first.event, second.event) == (11, 12)
    np.testing.assert_array_equal(first.part, gathers[1][:, :, 3:])
    source.done(first)
    source.done(second)
    assert sorted(os.listdir(tmp_path / "sent")) == ["shot-0011.npy", "shot-0012.npy"]
    assert drain(source) == []


def test_a_file_still_growing_waits(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    path = save(tmp_path / "7.npy", gathers[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    assert source.poll() is None
    path.write_bytes(whole)
    assert source.poll() is None
    assert source.poll().event == 7


def test_a_bad_file_is_set_aside_with_its_reason(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    save(tmp_path / "1.npy", gathers[0][:, :50])
    (tmp_path / "2.npy").write_bytes(b"junk")
    save(tmp_path / "3.npy", gathers[0])
    assert [recording.event for recording in drain(source)] == [3]
    assert "expected a gather (2, 100, 6)" in (tmp_path / "rejected" / "1.txt").read_text()
    assert source.rejected == 2 and source.rejection.startswith("expected a .npy file, got other content")
    assert "expected a .npy file, got other content" in (tmp_path / "rejected" / "2.txt").read_text()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(GatherError, match="no such folder"):
        FolderSource(tmp_path / "nowhere", MINE, 0.0)


@pytest.mark.parametrize("name", ["shot-20261124112345.npy", "shot.npy"])
def test_a_name_without_a_usable_event_number_is_set_aside(tmp_path, gathers, name):
    source = FolderSource(tmp_path, MINE, 0.0)
    save(tmp_path / name, gathers[0])
    save(tmp_path / "4294967295.npy", gathers[0])
    assert [recording.event for recording in drain(source)] == [4294967295]
    reason = (tmp_path / "rejected" / name).with_suffix(".txt").read_text()
    assert "expected a name that ends in the event's number, 0 to 4294967295" in reason


def test_a_file_filled_in_place_waits_until_it_rests(tmp_path, gathers):
    """A file may have its whole size from the start; then its time of change tells."""
    source = FolderSource(tmp_path, MINE, 0.0)
    path = save(tmp_path / "7.npy", np.zeros(SHAPE, np.float32))
    os.utime(path, ns=(1, 1))
    assert source.poll() is None
    save(path, gathers[0])
    os.utime(path, ns=(2, 2))
    assert source.poll() is None
    np.testing.assert_array_equal(source.poll().part, gathers[0][:, :, 3:])


def test_a_hidden_name_is_not_a_recording_until_it_is_renamed(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    save(tmp_path / ".5.npy", gathers[0])
    assert drain(source) == []
    (tmp_path / ".5.npy").rename(tmp_path / "5.npy")
    assert [recording.event for recording in drain(source)] == [5]


def test_no_damage_to_a_header_gets_past_as_another_error(tmp_path, gathers):
    """numpy's reader fails in many ways, and one bad file must not stop a device in the field."""
    whole = save(tmp_path / "good.npy", gathers[:1]).read_bytes()
    header, path = whole[:128], tmp_path / "bad.npy"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(header)
        for _ in range(int(rng.integers(1, 6))):
            damaged[rng.integers(len(header))] = rng.choice(list(b"9(', ,\0\xff{"))
        path.write_bytes(bytes(damaged) + whole[128:])
        try:
            open_gathers(path)
        except GatherError:
            refused += 1
    assert refused > 250


def test_an_archive_is_not_an_array(tmp_path, gathers):
    np.savez(tmp_path / "a.npz", gathers)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(GatherError, match=r"a.npy: expected a .npy file of gathers, got an archive"):
        open_gathers(tmp_path / "a.npy")


class Lines(list):
    """A log's lines, as (what, values)."""

    def __call__(self, what, **values):
        self.append((what, values))


def block(folder):
    """Put a file where ``folder`` is."""
    folder.rmdir()
    folder.write_text("a file where the folder should be")


@pytest.mark.parametrize("how", ["done", "reject"])
def test_what_cannot_be_moved_is_logged_and_does_not_come_again(tmp_path, gathers, how):
    log = Lines()
    source = FolderSource(tmp_path, MINE, 0.0, log=log)
    save(tmp_path / "1.npy", gathers[0])
    (recording,) = drain(source)
    to = "sent" if how == "done" else "rejected"
    block(tmp_path / to)
    source.done(recording) if how == "done" else source.reject(recording, "why")
    what, values = log[-1]
    assert (what, values["event"]) == ("not_moved", 1)
    assert f"1.npy: cannot be moved to {to}/ (File exists); make the folder writable" in values["reason"]
    save(tmp_path / "2.npy", gathers[0])
    assert [recording.event for recording in drain(source)] == [2], "the device goes on, without the first"
    (tmp_path / to).unlink()
    (tmp_path / "1.npy").unlink()
    assert drain(source) == []
    save(tmp_path / "1.npy", gathers[1])
    assert [recording.event for recording in drain(source)] == [1], "another of its name, the folder mended"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_stays_is_logged_once_and_tried_again(
    tmp_path, gathers, monkeypatch, code
):
    """No damage: a permission that is put right, or a disk that answers again, brings it back."""
    log, failing = Lines(), [True]
    opened = Path.open

    def fail(path, *arguments, **options):
        if failing[0] and path.name == "1.npy":
            raise OSError(code, os.strerror(code))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    source = FolderSource(tmp_path, MINE, 0.0, log=log)
    save(tmp_path / "1.npy", gathers[0])
    save(tmp_path / "2.npy", gathers[0])
    assert [recording.event for recording in drain(source)] == [2]
    ((what, values),) = log
    assert (what, values["event"]) == ("unreadable", 1)
    assert f"1.npy: cannot be read ({os.strerror(code)}); make it readable" in values["reason"]
    assert (tmp_path / "1.npy").exists()
    assert not list((tmp_path / "rejected").iterdir())
    failing[0] = False
    assert [recording.event for recording in drain(source)] == [1]


def test_a_bad_file_that_cannot_be_moved_is_rejected_once(tmp_path):
    log = Lines()
    source = FolderSource(tmp_path, MINE, 0.0, log=log)
    block(tmp_path / "rejected")
    (tmp_path / "1.npy").write_bytes(b"junk")
    assert drain(source) == []
    assert [what for what, _ in log] == ["rejected", "not_moved"]


def test_what_is_wrong_with_a_file_is_said_without_the_librarys_advice(tmp_path, gathers):
    """numpy calls text and Python objects "pickled data", and advises to load them "unsafely"."""
    source = FolderSource(tmp_path, MINE, 0.0)
    (tmp_path / "1.npy").write_text("12.5, 3\n")
    np.save(tmp_path / "2.npy", np.array([{}], object))
    (tmp_path / "3.npy").write_bytes(b"")
    save(tmp_path / "4.npy", gathers[0])
    (tmp_path / "4.npy").write_bytes((tmp_path / "4.npy").read_bytes()[:200])
    assert drain(source) == []
    reasons = [(tmp_path / "rejected" / f"{number}.txt").read_text() for number in range(1, 5)]
    assert "expected a .npy file, got other content" in reasons[0]
    assert "expected floating gathers, got Python objects" in reasons[1]
    assert all("not a whole .npy file" in reason and "copy it again" in reason for reason in reasons[2:])
    assert not any("pickle" in reason for reason in reasons)


def test_a_reason_that_cannot_be_written_is_in_the_log_alone(tmp_path):
    log = Lines()
    source = FolderSource(tmp_path, MINE, 0.0, log=log)
    (tmp_path / "rejected" / "1.txt").mkdir()
    (tmp_path / "1.npy").write_bytes(b"junk")
    assert drain(source) == []
    assert "got other content" in dict(log)["rejected"]["reason"]
    assert (tmp_path / "rejected" / "1.npy").exists()


def test_a_file_of_before_1970_has_no_time(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    os.utime(save(tmp_path / "1.npy", gathers[0]), (-86_400, -86_400))
    (recording,) = drain(source)
    assert recording.sample_time_us == 0, "which says that there was no clock"


def test_a_name_that_is_not_utf_8_is_set_aside_like_any_other(tmp_path):
    source = FolderSource(tmp_path, MINE, 0.0)
    with open(os.fsencode(tmp_path) + b"/shot-\xff1.npy", "wb") as file:
        file.write(b"junk")
    assert drain(source) == []
    (reason,) = (tmp_path / "rejected").glob("*.txt")
    assert "/shot-\\udcff1.npy: expected a .npy file" in reason.read_text()


def test_a_replay_of_other_files_is_another(tmp_path, gathers):
    a, b = save(tmp_path / "a.npy", gathers[:1]), save(tmp_path / "b.npy", gathers[1:])
    numbers = {FileSource(paths, MINE, 0.0, 0).files for paths in ([a], [b], [a, b], [b, a])}
    assert len(numbers) == 4
    assert FileSource([a, b], MINE, 5.0, 2).files in numbers, "however many of them, and how fast"


def test_a_file_that_is_taken_away_is_passed_over(tmp_path, gathers):
    source = FolderSource(tmp_path, MINE, 0.0)
    for event in (1, 2, 3):
        save(tmp_path / f"{event}.npy", gathers[0])
    assert source.poll() is None
    first = source.poll()
    (tmp_path / "1.npy").unlink()
    (tmp_path / "2.npy").unlink()
    source.done(first)
    assert [recording.event for recording in drain(source)] == [3]
