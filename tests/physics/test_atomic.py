import pytest
from synced import note_syncs

from physics.files.atomic import atomic_write


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "gather.npy"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert list(tmp_path.glob("*.npy")) == [path], "a device that watches the folder does not see it"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps = note_syncs(monkeypatch)
    with atomic_write(tmp_path / "gather.npy") as temporary:
        temporary.write_text("new")
    assert steps == [
        ("synced", str(tmp_path / ".gather.npy.tmp")),
        ("named", str(tmp_path / "gather.npy")),
        ("synced", str(tmp_path)),
    ]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_that_goes_by_the_suffix_gets_its_own(tmp_path):
    with atomic_write(tmp_path / "encoder.keras", suffix=".keras") as temporary:
        assert temporary.suffix == ".keras"
        temporary.write_text("network")
