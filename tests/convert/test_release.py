import contextlib
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="conversion needs the train extra")

from convert.errors import ConversionError
from convert.release import staged_release

MARK = {"bundle": "manifest.json", "decoder": "decoder.json"}


def fill(parent: Path, content: str) -> None:
    for name, mark in MARK.items():
        (parent / name).mkdir(parents=True)
        (parent / name / mark).write_text(content)


def contents(out: Path) -> dict[str, str]:
    return {name: (out / name / mark).read_text() for name, mark in MARK.items()}


def test_nothing_is_at_its_place_before_publishing(tmp_path):
    out = tmp_path / "out"
    with staged_release(out) as stage:
        fill(stage.folder, "new")
        assert not out.exists()
        stage.publish()
    assert contents(out) == {"bundle": "new", "decoder": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_before_publishing_leaves_the_former_release(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    with pytest.raises(ConversionError), staged_release(out) as stage:
        fill(stage.folder, "new")
        raise ConversionError("the gate")
    assert contents(out) == {"bundle": "old", "decoder": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stuck", ["bundle", "decoder"])
def test_a_failure_while_publishing_puts_the_former_release_back(tmp_path, monkeypatch, stuck):
    out = tmp_path / "out"
    fill(out, "old")
    rename = Path.rename

    def failing(self, target):
        if self.name == stuck and self.parent != out and Path(target).parent == out:
            raise OSError("no space left on device")
        return rename(self, target)

    with pytest.raises(OSError, match="no space left"), staged_release(out) as stage:
        fill(stage.folder, "new")
        monkeypatch.setattr(Path, "rename", failing)
        stage.publish()
    assert contents(out) == {"bundle": "old", "decoder": "old"}


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("is_done", [True, False])
def test_ctrl_c_while_publishing_puts_the_former_release_back(tmp_path, monkeypatch, number, is_done, former):
    out = tmp_path / "out"
    if former:
        fill(out, "old")
    rename, calls = Path.rename, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) != number:
            return rename(self, target)
        if is_done:
            rename(self, target)
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), staged_release(out) as stage:
        fill(stage.folder, "new")
        monkeypatch.setattr(Path, "rename", interrupted)
        stage.publish()
    if former:
        assert contents(out) == {"bundle": "old", "decoder": "old"}
    elif number <= 2:
        assert not list(out.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with (
        pytest.raises(ConversionError, match="expected a folder or a new name, got a file"),
        staged_release(tmp_path / "out"),
    ):
        pass
