"""Data sets: reproducible whatever the number of workers, resumable, and never half there."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_survey import MODELLED_SURVEY as SURVEY

import epic
import physics.dataset
from physics.acquisition import Acquisition
from physics.dataset import DatasetError, DatasetRequest, generate_dataset
from physics.errors import ModellingError
from physics.families import generate_map
from physics.files.openfwi_files import find_pairs
from physics.modelling import model_gathers


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(physics.dataset, "CHUNK_SAMPLES", 2)
    monkeypatch.setattr(physics.dataset, "FILE_SAMPLES", 5)


REQUEST = DatasetRequest(("flatvel_a", "curvefault_b"), 7, 4, SURVEY)


def generate(out, workers=1, on_progress=lambda now, total: None, **changes):
    return generate_dataset(replace(REQUEST, **changes), out, workers, on_progress)


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.npy"))}


def test_files_are_the_benchmarks_and_hold_what_the_seed_says(tmp_path):
    files = generate(tmp_path)
    assert [path.name for path in files] == ["data1.npy", "data2.npy", "seis6_1_0.npy", "seis6_1_1.npy"]
    pairs = find_pairs(tmp_path, SURVEY)
    assert [len(pair) for pair in pairs] == [5, 2, 5, 2]
    for family in ("flatvel_a", "curvefault_b"):
        own = [pair for pair in pairs if pair.family == family]
        expected = np.stack([generate_map(family, 4, index, SURVEY) for index in range(7)])
        np.testing.assert_array_equal(np.concatenate([pair.maps() for pair in own]), expected)
        gathers = model_gathers(expected, SURVEY)
        np.testing.assert_array_equal(np.concatenate([pair.gathers() for pair in own]), gathers)


def test_the_manifest_says_how_it_was_made(tmp_path):
    generate(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["seed"], manifest["engine"], manifest["count"]) == (4, "openfwi", 7)
    assert Acquisition.from_dict(manifest["acquisition"]) == SURVEY
    assert "numba" in manifest["versions"]


@pytest.mark.parametrize("content", ["not JSON", "[]", "3", '{"name": "of another program"}'])
def test_a_manifest_of_something_else_is_kept(tmp_path, capsys, content):
    (tmp_path / "manifest.json").write_text(content)
    command = ["data", "generate", "flatvel_a", "--count", "1", "--workers", "1", "--out", str(tmp_path)]
    assert epic.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "manifest.json: expected the manifest of a data set, got another file; choose an empty folder" in said
    )
    assert (tmp_path / "manifest.json").read_text() == content


def test_two_workers_make_the_same_files_as_one(tmp_path):
    generate(tmp_path / "one")
    generate(tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    generate(tmp_path / "whole")
    work, done = physics.dataset._work, []

    def dies_in_the_middle(chunk):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(chunk)
        return work(chunk)

    monkeypatch.setattr(physics.dataset, "_work", dies_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "cut")
    worked = []
    monkeypatch.setattr(physics.dataset, "_work", lambda chunk: worked.append(chunk) or work(chunk))
    progress = []
    generate(tmp_path / "cut", on_progress=lambda now, total: progress.append((now, total)))
    assert len(worked) == 8 - 4
    assert progress[-1] == (14, 14)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "cut" / ".parts").exists()


def test_a_run_cut_before_its_files_were_assembled_goes_on(tmp_path, monkeypatch):
    generate(tmp_path / "whole")

    def dies(out, chunks):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(physics.dataset, "_assemble", dies)
        generate(tmp_path / "cut")
    progress = []
    generate(tmp_path / "cut", on_progress=lambda now, total: progress.append((now, total)))
    assert progress[-1] == (14, 14)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_set_is_left_as_it_is(tmp_path, monkeypatch):
    generate(tmp_path)
    monkeypatch.setattr(physics.dataset, "_work", lambda chunk: pytest.fail("worked again"))
    assert len(generate(tmp_path)) == 4


def test_another_part_of_the_sequence(tmp_path):
    generate(tmp_path, count=2, first=100)
    pair = find_pairs(tmp_path, SURVEY)[1]
    assert pair.family == "flatvel_a"
    np.testing.assert_array_equal(pair.maps()[0], generate_map("flatvel_a", 4, 100, SURVEY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, r"holds another data set \(seed differ\); choose an empty folder"),
        ({"count": 8}, r"holds another data set \(count differ\)"),
        ({"count": 0}, "expected count >= 1"),
        ({"workers": 0}, "workers >= 1"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, changes, message):
    generate(tmp_path)
    with pytest.raises(DatasetError, match=message):
        generate(tmp_path, **changes)


@pytest.mark.parametrize("engine", ["openfwis", "openfwi", "cuda"])
def test_an_engine_that_is_not_there_claims_no_folder(tmp_path, monkeypatch, engine):
    for package in ("numba", "cupy"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModellingError, match=r"needs \w+; .*pip install|expected engine openfwi"):
        generate(tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_a_family_named_twice_is_one(tmp_path, capsys):
    generate(tmp_path / "once", families=("flatvel_a",), count=2)
    generate(tmp_path / "twice", families=("flatvel_a", "FlatVel-A"), count=2)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    assert json.loads((tmp_path / "twice" / "manifest.json").read_text())["families"] == ["flatvel_a"]
    survey = str(tmp_path / "once" / "manifest.json")
    command = ["data", "generate", "flatvel_a", "flatvel_a", "--count", "1"]
    command += ["--workers", "1", "--survey", survey, "--out", str(tmp_path / "said")]
    assert epic.main(command) == 0
    assert capsys.readouterr().out.startswith("1 samples in 1 files")


@pytest.mark.parametrize("command", ["generate flatvel_a --out", "sheet"])
def test_a_negative_seed_is_one_line_and_writes_nothing(tmp_path, capsys, command):
    out = tmp_path / "out.png"
    assert epic.main(["data", *command.split(), str(out), "--seed", "-1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: seed: expected 0 or more, got -1")
    assert list(tmp_path.iterdir()) == []


def test_twin_shots_stand_beside_the_gathers_and_do_not_change_them(tmp_path):
    survey = Acquisition.from_dict({**Acquisition.openfwi().to_dict(), "n_time": 60})
    plain_request = DatasetRequest(("flatvel_a",), 2, 4, survey)
    generate_dataset(replace(plain_request, twins=True), tmp_path / "with")
    generate_dataset(plain_request, tmp_path / "without")
    (pair,), (plain,) = (find_pairs(tmp_path / name, survey) for name in ("with", "without"))
    np.testing.assert_allclose(pair.gathers(), plain.gathers(), atol=1e-5)
    shot = model_gathers(pair.maps(), survey.with_twins())[:, 5:]
    np.testing.assert_allclose(pair.twins(), shot, atol=1e-5)
    assert plain.twins() is None
    # An interrupted set is not completed without them.
    with pytest.raises(DatasetError, match="twins differ"):
        generate_dataset(plain_request, tmp_path / "with")
