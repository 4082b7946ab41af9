"""Thinned training data: what would spoil a network is refused by file and sample, and a cache is of its file."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_survey import SURVEY, write_data

from models.data.gathers import DataError, load_decimated, survey_of


@pytest.fixture
def folder(tmp_path):
    return write_data(tmp_path / "data", 60)


def change(folder, name, edit):
    """Have ``edit`` change the array of a file."""
    path = folder / "FlatVel_A" / name
    array = np.load(path)
    edit(array)
    np.save(path, array)


def set_sample(value, place=(0, 50, 3)):
    def edit(gathers):
        gathers[(57, *place)] = value

    return edit


def scale_sample(factor):
    def edit(gathers):
        gathers[57] *= factor

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_sample(np.nan), "expected finite samples, got NaN or infinity; mend it or leave it out"),
        (set_sample(-np.inf), "expected finite samples, got NaN or infinity"),
        (scale_sample(1e4), r"a gather that float16 holds, .*, got one of [\d.]+e\+05; multiply all"),
        (scale_sample(1e-9), r"a gather that float16 holds, .*, got one of [\d.]+e-08; multiply all"),
    ],
)
def test_a_gather_that_would_spoil_the_encoder_is_named(folder, edit, message):
    change(folder, "data1.npy", edit)
    with pytest.raises(DataError, match=rf"FlatVel_A/data1.npy: sample 57: .*{message}") as caught:
        load_decimated([folder], SURVEY, 10)
    assert "\n" not in str(caught.value)


def test_a_silent_gather_is_one(folder):
    change(folder, "data1.npy", scale_sample(0.0))
    assert not load_decimated([folder], SURVEY, 10).gathers[57].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1500.0])
def test_a_map_that_is_none_is_named(folder, value):
    change(folder, "model1.npy", set_sample(value, (0, 3, 3)))
    with pytest.raises(DataError, match=r"model1.npy: sample 57: expected velocities in m/s"):
        load_decimated([folder], SURVEY, 10)


@pytest.mark.parametrize("value", [2.5, 1480.0, 4550.0])
def test_a_map_in_another_unit_or_beyond_the_survey_is_named(folder, value):
    change(folder, "model1.npy", set_sample(value, (0, 3, 3)))
    message = r"model1.npy: sample 57: expected velocities of 1500 to 4500 m/s, got .*\[map\] velocity_mps"
    with pytest.raises(DataError, match=message):
        load_decimated([folder], SURVEY, 10)


@pytest.mark.parametrize("value", [1500.0, 1486.0, 4500.0, 4544.0])
def test_a_map_may_reach_the_surveys_velocities_and_their_rounding(folder, value):
    change(folder, "model1.npy", set_sample(value, (0, 3, 3)))
    assert len(load_decimated([folder], SURVEY, 10)) == 60


def test_a_familys_folder_has_the_survey_of_its_data_set(folder, tmp_path, monkeypatch):
    other = dataclasses.replace(SURVEY, dx_m=20.0, velocity_max_mps=6000.0)
    manifest = {"families": ["flatvel_a"], "count": 60, "seed": 1, "acquisition": other.to_dict()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    family = folder / "FlatVel_A"
    assert survey_of(folder) == survey_of(family) == other
    assert survey_of(family / "data") == other, "as downloaded, with gathers and maps apart"
    link = tmp_path / "link"
    link.symlink_to(family)
    assert survey_of(link) == other
    monkeypatch.chdir(family)
    assert survey_of(Path()) == other
    with pytest.raises(DataError, match="FlatVel_A: was made for another survey"):
        load_decimated([family], SURVEY, 10)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"families": 3}', '{"families": ["style_a"], "acquisition": {}}']
)
def test_a_file_beside_a_folder_that_is_no_manifest_of_it_says_nothing(folder, content):
    (folder / "manifest.json").write_text(content)
    assert survey_of(folder / "FlatVel_A") is None


def test_a_cache_of_another_version_is_looked_over_too(folder):
    load_decimated([folder], SURVEY, 10)
    (cache,) = (folder / "FlatVel_A").glob(".data1.*")
    thinned = np.load(cache)
    thinned[3, 5] = np.inf
    np.save(cache, thinned)
    with pytest.raises(DataError, match="data1.npy: sample 3"):
        load_decimated([folder], SURVEY, 10)


def test_a_second_reading_is_of_the_cache(folder, monkeypatch):
    first = load_decimated([folder], SURVEY, 10)
    monkeypatch.setattr("models.data.gathers.thin_samples", lambda *_, **__: pytest.fail("thinned again"))
    np.testing.assert_array_equal(load_decimated([folder], SURVEY, 10).gathers, first.gathers)


def test_where_no_cache_can_be_kept_data_are_read_without(folder, monkeypatch):
    expected = load_decimated([folder], SURVEY, 10).gathers
    (cache,) = (folder / "FlatVel_A").glob(".data1.*")
    cache.unlink()

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    # A mode would not keep root out.
    monkeypatch.setattr("models.data.gathers.np.save", refuse)
    np.testing.assert_array_equal(load_decimated([folder], SURVEY, 10).gathers, expected)


@pytest.mark.parametrize("count", [60, 70])
def test_another_file_of_that_name_is_thinned_anew_however_old(folder, tmp_path, count):
    before = load_decimated([folder], SURVEY, 10)
    other = write_data(tmp_path / "other", count, seed=2)
    expected = load_decimated([other], SURVEY, 10).gathers
    for name in ("data1.npy", "model1.npy"):
        os.utime(other / "FlatVel_A" / name, (1, 1))
        shutil.move(other / "FlatVel_A" / name, folder / "FlatVel_A" / name)
    after = load_decimated([folder], SURVEY, 10)
    assert len(after.gathers) == len(after) == count
    np.testing.assert_array_equal(after.gathers, expected)
    assert not np.array_equal(after.gathers[:60], before.gathers)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01"])
def test_a_damaged_cache_is_made_again(folder, content):
    expected = load_decimated([folder], SURVEY, 10).gathers
    (cache,) = (folder / "FlatVel_A").glob(".data1.*")
    cache.write_bytes(content)
    np.testing.assert_array_equal(load_decimated([folder], SURVEY, 10).gathers, expected)


def test_twin_shots_are_checked_and_cached_as_gathers_are(folder, monkeypatch):
    survey = dataclasses.replace(SURVEY, source_cells=(0, 18))
    twins = np.random.default_rng(0).normal(size=(60, *survey.twins_shape)).astype(np.float32)
    path = folder / "FlatVel_A" / "data1.twins.npy"
    twins[57, 0, 50, 3] = np.nan
    np.save(path, twins)
    with pytest.raises(DataError, match=r"data1\.twins\.npy: sample 57: expected finite samples"):
        load_decimated([folder], survey, 10)
    np.save(path, np.nan_to_num(twins))
    first = load_decimated([folder], survey, 10)
    assert first.mirrors
    # The second time nothing is decimated again.
    monkeypatch.setattr("models.data.gathers.thin_samples", None)
    np.testing.assert_array_equal(load_decimated([folder], survey, 10).twins, first.twins)
