"""Where recordings go when they are done with, and what happens when that fills the disk."""

import os
from collections import namedtuple

import numpy as np
import pytest

from firmware_py.inference.companding import GatherError
from firmware_py.sources import processed_files as aside
from firmware_py.sources.processed_files import ProcessedFiles
from firmware_py.sources.recordings import FolderSource, Selection

MIB = 1 << 20


@pytest.mark.parametrize("name", ["sent", "rejected"])
def test_a_folder_that_nothing_can_be_moved_in_is_found_at_once(tmp_path, name):
    (tmp_path / name).write_text("a file where the folder should be")
    with pytest.raises(
        GatherError, match=r"cannot be moved to its sent/ and rejected/ .*; make all three writable"
    ):
        ProcessedFiles(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_what_root_makes_while_it_tries_is_the_devices_users(tmp_path):
    os.chown(tmp_path, 1234, 2345)
    tmp_path.chmod(0o2770)
    ProcessedFiles(tmp_path)
    for name in ("sent", "rejected"):
        made = (tmp_path / name).stat()
        assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (1234, 2345, 0o2770)


@pytest.mark.parametrize("user", [0, 1234], ids=["root", "its own user"])
def test_folders_of_the_devices_user_are_made_without_chown(tmp_path, monkeypatch, user):
    """The service's filter of system calls refuses chown."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("chown was called"))
    if user and os.getuid() == 0:
        os.lchown(tmp_path, user, user)
    tmp_path.chmod(0o2770)
    ProcessedFiles(tmp_path)
    assert {name: (tmp_path / name).stat().st_mode & 0o7777 for name in ("sent", "rejected")} == {
        "sent": 0o2770,
        "rejected": 0o2770,
    }


def test_a_folder_that_nothing_can_be_made_in_is_found_at_once(tmp_path, monkeypatch):
    (tmp_path / "sent").mkdir()
    (tmp_path / "rejected").mkdir()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    # A mode would not keep root out.
    monkeypatch.setattr(aside.Path, "touch", refuse)
    with pytest.raises(GatherError, match=r"Permission denied"):
        ProcessedFiles(tmp_path)


def test_trying_leaves_two_empty_folders(tmp_path):
    ProcessedFiles(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["rejected", "sent"]


@pytest.mark.parametrize("to", ["sent", "rejected"])
def test_recordings_of_one_name_are_all_kept(tmp_path, to):
    """A recorder that is started anew counts from the start."""
    places = ProcessedFiles(tmp_path)
    for content in ("first", "second", "third"):
        (tmp_path / "shot-1.npy").write_text(content)
        places.move(tmp_path / "shot-1.npy", to)
    kept = {path.name: path.read_text() for path in (tmp_path / to).iterdir()}
    assert kept == {"shot-1.npy": "first", "shot-1.~2~.npy": "second", "shot-1.~3~.npy": "third"}


def test_each_of_two_bad_files_of_one_name_has_its_own_reason(tmp_path):
    source = FolderSource(tmp_path, Selection((2, 100, 6), (3, 4, 5)), 0.0)
    for bad in (b"junk", None):
        path = tmp_path / "shot-1.npy"
        path.write_bytes(bad) if bad else np.save(path, np.zeros((3, 3), np.float32))
        while path.exists():
            source.poll()
    reasons = {path.name: path.read_text() for path in (tmp_path / "rejected").glob("*.txt")}
    assert "expected a .npy file" in reasons["shot-1.txt"]
    assert "expected floating gathers" in reasons["shot-1.~2~.txt"]


class Disk:
    """A disk of ``free_bytes``, to which what is removed in ``folder`` comes."""

    def __init__(self, monkeypatch, folder, free_bytes):
        self._folder = folder
        self._all = free_bytes + self._taken()
        monkeypatch.setattr(
            aside.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(self.free_bytes)
        )

    def _taken(self):
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())

    @property
    def free_bytes(self):
        return self._all - self._taken()


def fill(folder, count):
    """Recordings of 1 MiB in sent/, the first of them the oldest."""
    for number in range(1, count + 1):
        path = folder / "sent" / f"{number}.npy"
        path.write_bytes(bytes(MIB))
        os.utime(path, (1e9 + number, 1e9 + number))


def left(folder):
    return sorted(path.name for path in (folder / "sent").iterdir())


@pytest.mark.parametrize("looked_up", [1, 256])
def test_with_too_little_room_the_oldest_sent_go_and_nothing_else(tmp_path, monkeypatch, looked_up):
    monkeypatch.setattr(aside, "LOOKED_UP", looked_up)
    places = ProcessedFiles(tmp_path, keep_free_mib=4)
    fill(tmp_path, 5)
    others = [tmp_path / "waiting-1.npy", tmp_path / "rejected" / "1.npy", tmp_path / "sent" / "notes.txt"]
    for path in others:
        path.write_bytes(bytes(MIB))
        os.utime(path, (1, 1))
    disk = Disk(monkeypatch, tmp_path, 3 * MIB // 2)
    assert places.make_room() == 3
    assert left(tmp_path) == ["4.npy", "5.npy", "notes.txt"]
    assert disk.free_bytes >= 4 * MIB
    assert places.make_room() == 0
    assert all(path.exists() for path in others)


def test_a_disk_that_others_fill_takes_what_is_sent_and_then_no_more(tmp_path, monkeypatch):
    places = ProcessedFiles(tmp_path, keep_free_mib=100)
    fill(tmp_path, 3)
    Disk(monkeypatch, tmp_path, 0)
    assert (places.make_room(), places.make_room()) == (3, 0)


def test_who_only_looks_whether_it_works_removes_nothing(tmp_path, monkeypatch):
    """`check` does: what is removed is removed by the device, which logs it."""
    ProcessedFiles(tmp_path)
    fill(tmp_path, 3)
    Disk(monkeypatch, tmp_path, 0)
    FolderSource(tmp_path, Selection((2, 100, 6), (3, 4, 5)), 0.0, 4)
    assert left(tmp_path) == ["1.npy", "2.npy", "3.npy"]


def test_where_nothing_is_to_be_kept_free_nothing_is_removed(tmp_path, monkeypatch):
    places = ProcessedFiles(tmp_path, keep_free_mib=0)
    fill(tmp_path, 3)
    Disk(monkeypatch, tmp_path, 0)
    assert places.make_room() == 0


def test_a_disk_that_counts_what_is_removed_only_later_loses_no_more_for_it(tmp_path, monkeypatch):
    places = ProcessedFiles(tmp_path, keep_free_mib=4)
    fill(tmp_path, 5)
    monkeypatch.setattr(aside.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(2 * MIB))
    assert places.make_room() == 2


def test_what_somebody_took_out_of_sent_is_passed_over(tmp_path, monkeypatch):
    places = ProcessedFiles(tmp_path, keep_free_mib=2)
    fill(tmp_path, 4)
    disk = Disk(monkeypatch, tmp_path, MIB)
    assert places.make_room() == 1
    (tmp_path / "sent" / "2.npy").unlink()
    (tmp_path / "other").write_bytes(bytes(2 * MIB))
    assert disk.free_bytes == MIB
    assert places.make_room() == 1
    assert left(tmp_path) == ["4.npy"]


def test_rejected_recordings_make_room_too_and_stay(tmp_path, monkeypatch):
    source = FolderSource(tmp_path, Selection((2, 100, 6), (3, 4, 5)), 0.0, 4)
    fill(tmp_path, 3)
    np.save(tmp_path / "9.npy", np.zeros((3, 3), np.float32))
    Disk(monkeypatch, tmp_path, 2 * MIB + 4096)
    while not source.rejected:
        source.poll()
    assert left(tmp_path) == ["3.npy"]
    assert (tmp_path / "rejected" / "9.npy").exists()


def test_each_batch_that_is_removed_is_logged_once(tmp_path, monkeypatch):
    log = []
    source = FolderSource(
        tmp_path, Selection((2, 100, 6), (3, 4, 5)), 0.0, 4, lambda what, **values: log.append((what, values))
    )
    fill(tmp_path, 3)
    np.save(tmp_path / "9.npy", np.zeros((2, 100, 6), np.float32))
    Disk(monkeypatch, tmp_path, 2 * MIB)
    while (recording := source.poll()) is None:
        pass
    source.done(recording)
    assert log == [("removed", {"recordings": 2, "folder": str(tmp_path / "sent")})]
    assert left(tmp_path) == ["3.npy", "9.npy"]
