"""OpenFWI's files: names, pairs, memory-mapping, and what is said of broken ones."""

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_disk import small_disk

from physics.acquisition import Acquisition
from physics.files.openfwi_files import (
    OpenFWIFileError,
    create_array,
    family_file_names,
    family_folder,
    find_gather_files,
    find_pairs,
    map_path_of,
    open_gathers,
    open_pair,
)

SURVEY = Acquisition.from_dict(
    {
        **Acquisition.openfwi().to_dict(),
        "n_time": 6,
        "n_depth": 4,
        "n_width": 4,
        "source_cells": [0, 3],
        "receiver_cells": [0, 1, 2],
        "device_receivers": [[0, 1], [2]],
    }
)


def write(folder, name, shape, dtype=np.float32):
    folder.mkdir(exist_ok=True, parents=True)
    np.save(folder / name, np.arange(np.prod(shape), dtype=dtype).reshape(shape))
    return folder / name


@pytest.fixture
def pair(tmp_path):
    gathers = write(tmp_path / "FlatVel_A", "data1.npy", (3, *SURVEY.gather_shape))
    maps = write(tmp_path / "FlatVel_A", "model1.npy", (3, *SURVEY.map_shape))
    return gathers, maps


def test_names_are_the_benchmarks():
    assert family_folder("curvefault_b") == "CurveFault_B"
    assert family_folder("flatvel_a") == "FlatVel_A"
    assert family_folder("style_b") == "Style_B"
    assert family_file_names("flatvel_a", 0) == ("data1.npy", "model1.npy")
    assert family_file_names("curvefault_a", 3) == ("seis2_1_3.npy", "vel2_1_3.npy")
    assert family_file_names("flatfault_b", 0) == ("seis6_1_0.npy", "vel6_1_0.npy")


def test_downloaded_fault_files_find_their_maps(tmp_path):
    assert map_path_of(tmp_path / "seis4_1_35.npy") == tmp_path / "vel4_1_35.npy"
    assert map_path_of(tmp_path / "something.npy") is None


def test_a_download_is_read_as_it_is(tmp_path):
    """Its gathers are in a folder ``data`` of the family, its maps in ``model``."""
    family = tmp_path / "Style_B"
    for i in (1, 2):
        write(family / "data", f"data{i}.npy", (2, *SURVEY.gather_shape))
        write(family / "model", f"model{i}.npy", (2, *SURVEY.map_shape))
    for folder in (tmp_path, family, family / "data"):
        pairs = find_pairs(folder, SURVEY)
        assert [(found.family, len(found.maps())) for found in pairs] == [("style_b", 2)] * 2
    # `epic invert` takes what is the map of no other file for gathers.
    archive = set(tmp_path.rglob("*.npy"))
    gathers = find_gather_files(tmp_path)
    assert archive - {map_path_of(path) for path in archive} == set(gathers)
    assert [path.name for path in gathers] == ["data1.npy", "data2.npy"]
    (family / "model" / "model2.npy").unlink()
    with pytest.raises(OpenFWIFileError, match=r"model2.npy: not found; .*or of data/data2.npy in model/"):
        find_pairs(tmp_path, SURVEY)


def test_maps_beside_their_gathers_come_before_a_folder_of_maps(tmp_path, monkeypatch):
    gathers = write(tmp_path / "data", "data1.npy", (2, *SURVEY.gather_shape))
    write(tmp_path / "model", "model1.npy", (2, *SURVEY.map_shape))
    beside = write(tmp_path / "data", "model1.npy", (2, *SURVEY.map_shape))
    assert open_pair(gathers, SURVEY).map_path == beside
    monkeypatch.chdir(tmp_path / "data")
    assert str(map_path_of(gathers.relative_to(tmp_path / "data"))) == "model1.npy"


def test_reading_is_memory_mapped(pair):
    opened = open_pair(pair[0], SURVEY)
    assert isinstance(opened.gathers(), np.memmap)
    assert isinstance(opened.maps(), np.memmap)
    assert opened.family == "flatvel_a"
    assert len(opened) == 3


def test_pairs_come_in_natural_order(tmp_path):
    for i in (10, 2, 1):
        write(tmp_path / "Style_A", f"data{i}.npy", (1, *SURVEY.gather_shape))
        write(tmp_path / "Style_A", f"model{i}.npy", (1, *SURVEY.map_shape))
    names = [found.gather_path.name for found in find_pairs(tmp_path, SURVEY)]
    assert names == ["data1.npy", "data2.npy", "data10.npy"]


def test_a_single_gather_of_half_precision(tmp_path):
    path = write(tmp_path, "mine.npy", SURVEY.gather_shape, np.float16)
    assert open_gathers(path, SURVEY).shape == (1, *SURVEY.gather_shape)
    assert open_pair(path, SURVEY).map_path is None


def test_truncated_file(pair):
    data = pair[0].read_bytes()
    pair[0].write_bytes(data[: len(data) // 2])
    with pytest.raises(
        OpenFWIFileError, match=r"data1.npy: not a whole .npy file .*copy or download it again"
    ):
        open_gathers(pair[0], SURVEY)


def test_text_under_the_name_of_an_array_is_called_so(pair):
    pair[0].write_text("12.5, 3\n")
    with pytest.raises(OpenFWIFileError, match="expected a .npy file, got other content"):
        open_gathers(pair[0], SURVEY)


def test_empty_file(pair):
    pair[0].write_bytes(b"")
    with pytest.raises(OpenFWIFileError, match="not a whole"):
        open_gathers(pair[0], SURVEY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, 127), st.integers(0, 255), min_size=1, max_size=4))
@example(changes={116: 0x28})
def test_a_damaged_header_is_a_file_error_or_harmless(tmp_path, changes):
    path = write(tmp_path, "damaged.npy", (3, *SURVEY.gather_shape))
    data = bytearray(path.read_bytes())
    for offset, value in changes.items():
        data[offset] = value
    path.write_bytes(data)
    try:
        assert open_gathers(path, SURVEY).shape[1:] == SURVEY.gather_shape
    except OpenFWIFileError as error:
        assert str(path) in str(error)


def test_an_archive_is_no_gather_file(tmp_path):
    with (tmp_path / "data1.npy").open("wb") as file:
        np.savez(file, gather=np.zeros(3))
    with pytest.raises(OpenFWIFileError, match="archive under another name"):
        open_gathers(tmp_path / "data1.npy", SURVEY)


def test_wrong_shape_and_type(tmp_path):
    with pytest.raises(OpenFWIFileError, match=r"shape \(n, 2, 6, 3\), got float32 \(3, 2, 5, 3\)"):
        open_gathers(write(tmp_path, "a.npy", (3, 2, 5, 3)), SURVEY)
    with pytest.raises(OpenFWIFileError, match="got int64"):
        open_gathers(write(tmp_path, "b.npy", (3, 2, 6, 3), np.int64), SURVEY)


def test_maps_of_another_length(pair):
    np.save(pair[1], np.zeros((2, *SURVEY.map_shape), np.float32))
    with pytest.raises(OpenFWIFileError, match=r"expected 3 maps, one for each gather of data1.npy, got 2"):
        open_pair(pair[0], SURVEY)


def test_missing_files(tmp_path, pair):
    with pytest.raises(OpenFWIFileError, match="no such folder"):
        find_pairs(tmp_path / "nowhere", SURVEY)
    with pytest.raises(OpenFWIFileError, match="not found"):
        open_gathers(tmp_path / "data7.npy", SURVEY)
    pair[1].unlink()
    with pytest.raises(OpenFWIFileError, match=r"model1.npy: not found; expected the maps of data1.npy"):
        find_pairs(tmp_path, SURVEY)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), create_array(tmp_path / "data1.npy", (2, 3)) as array:
        array[0] = 1
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with create_array(tmp_path / "data1.npy", (2, 3)) as array:
        array[:] = 7
    assert (np.load(tmp_path / "data1.npy") == 7).all()


def test_a_file_in_the_making_has_its_room(tmp_path):
    with create_array(tmp_path / "data1.npy", (1000, 1000)):
        (part,) = tmp_path.iterdir()
        assert part.stat().st_blocks * 512 >= 4_000_000, "sparse: a disk that fills up would end its writer"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OpenFWIFileError, match=r"data1.npy: expected 4.0 MB of room .*; make room") as caught,
        create_array(tmp_path / "data1.npy", (1000, 1000)),
    ):
        pytest.fail("written to")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(tmp_path, monkeypatch):
    def never(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", never)
    with create_array(tmp_path / "data1.npy", (2, 3)) as array:
        array[:] = 7
    assert (np.load(tmp_path / "data1.npy") == 7).all()


def test_a_disk_that_is_really_full(tmp_path):
    with small_disk(tmp_path, "1m"):
        with (
            pytest.raises(OpenFWIFileError, match="make room"),
            create_array(tmp_path / "a.npy", (1000, 1000)) as array,
        ):
            array[:] = 7
        assert list(tmp_path.iterdir()) == []
