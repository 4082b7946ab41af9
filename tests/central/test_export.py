"""Maps for other programs."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import xarray
from fake_decoder import MODEL_HASH, SURVEY

from central.export.formats import FORMATS, ExportError, Line, export_map, format_of


def test_npy_holds_velocity_then_uncertainty(fill, tmp_path):
    stored = fill()
    export_map(stored, "npy", tmp_path / "map.npy")
    array = np.load(tmp_path / "map.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [stored.velocity_mps, stored.uncertainty_mps])


def test_netcdf_says_units_axes_and_where_it_comes_from(fill, tmp_path):
    stored = fill(event=7)
    export_map(stored, "netcdf", tmp_path / "map.nc")
    with xarray.open_dataset(tmp_path / "map.nc") as dataset:
        assert dict(dataset.sizes) == {"depth": SURVEY.n_depth, "distance": SURVEY.n_width}
        np.testing.assert_array_equal(dataset.velocity, stored.velocity_mps)
        np.testing.assert_array_equal(dataset.uncertainty, stored.uncertainty_mps)
        assert dataset.velocity.units == dataset.uncertainty.units == "m s-1"
        assert dataset.depth.units == dataset.distance.units == "m"
        assert dataset.depth.positive == "down"
        # The first cell of 10 m has its centre 5 m down.
        assert dataset.depth.values[[0, -1]].tolist() == [5.0, 695.0]
        assert dataset.distance.values[[0, -1]].tolist() == [0.0, 690.0], "as x in survey.toml"
        assert float(dataset.velocity.sel(distance=0.0, depth=5.0)) == stored.velocity_mps[0, 0]
        assert dataset.attrs["Conventions"] == "CF-1.11"
        assert (dataset.attrs["survey"], dataset.attrs["event"], dataset.attrs["revision"]) == (1, 7, 1)
        assert json.loads(dataset.attrs["provenance"]) == stored.provenance
        assert stored.provenance["model_hash"] == MODEL_HASH.hex()


@pytest.mark.filterwarnings("error")
def test_zarr_is_the_same_data_set_and_opens_by_its_name(fill, tmp_path):
    pytest.importorskip("zarr", reason="the extra geo is not installed")
    stored = fill(event=7)
    for _ in range(2):
        export_map(stored, "zarr", tmp_path / "map.zarr")
    export_map(stored, "netcdf", tmp_path / "map.nc")
    dataset = xarray.open_zarr(tmp_path / "map.zarr").load()
    with xarray.open_dataset(tmp_path / "map.nc") as other:
        # Written a moment apart.
        assert dataset.attrs.pop("history")[:10] == other.attrs.pop("history")[:10]
        xarray.testing.assert_identical(dataset, other.load())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_history_says_when_and_by_what(fill, tmp_path):
    export_map(fill(event=7), "netcdf", tmp_path / "map.nc")
    with xarray.open_dataset(tmp_path / "map.nc") as dataset:
        assert re.search(
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ epic-fwi \S+: epic central export 7$",
            dataset.attrs["history"],
            re.M,
        )


LINE = Line((500_000.0, 4_512_345.0), 30.0, "EPSG:25832")


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_a_line_whose_place_is_known_has_coordinates(fill, tmp_path, kind):
    pytest.importorskip("zarr", reason="the extra geo is not installed")
    export_map(fill(), kind, tmp_path / "map", LINE)
    opened = xarray.open_zarr(tmp_path / "map") if kind == "zarr" else xarray.open_dataset(tmp_path / "map")
    with opened as dataset:
        assert float(dataset.x[0]) == 500_000.0 and float(dataset.y[0]) == 4_512_345.0
        assert float(dataset.x[69]) == pytest.approx(500_345.0)
        assert float(dataset.y[69]) == pytest.approx(4_512_345.0 + 690 * 3**0.5 / 2)
        assert dataset.x.units == "m" and dataset.x.standard_name == "projection_x_coordinate"
        assert "_FillValue" not in dataset.x.encoding or dataset.x.encoding["_FillValue"] is None
        assert dataset.attrs["line_crs"] == "EPSG:25832" and dataset.attrs["line_azimuth_deg"] == 30.0


def test_a_segy_has_the_lines_coordinates(fill, tmp_path, segyio):
    export_map(fill(), "segy", tmp_path / "map.sgy", LINE)
    with segyio.open(tmp_path / "map.sgy") as file:
        head = file.header[69]
        scale = -head[segyio.TraceField.SourceGroupScalar]
        assert head[segyio.TraceField.CDP_X] / scale == pytest.approx(500_345.0, abs=0.01)
        assert head[segyio.TraceField.CDP_Y] / scale == pytest.approx(4_512_942.56, abs=0.01)
        assert b"EPSG:25832" in bytes(file.text[0])


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("map.nc", None, "netcdf"),
        ("map.PNG", None, "png"),
        ("map.zarr", None, "zarr"),
        ("map.segy", "segy", "segy"),
        ("map", "npy", "npy"),
        ("map.v2", "png", "png"),
        ("map.png", "netcdf", "its suffix is not one of netcdf"),
        ("map.zarr.zip", "zarr", "its suffix is not one of zarr"),
        ("map", None, "expected the suffix of a format, npy .* got 'none'"),
        ("map.tif", None, "got '.tif'; or give --format"),
    ],
)
def test_the_suffix_decides_and_a_contradiction_is_refused(name, kind, expected):
    from pathlib import Path

    if expected in FORMATS:
        assert format_of(Path(name), kind) == expected
    else:
        with pytest.raises(ExportError, match=expected):
            format_of(Path(name), kind)


def test_coordinates_have_no_missing_values(fill, tmp_path):
    """CF allows none; an attribute that names one is enough for a checker to object."""
    h5netcdf = pytest.importorskip("h5netcdf")
    export_map(fill(), "netcdf", tmp_path / "map.nc")
    with h5netcdf.File(tmp_path / "map.nc") as file:
        for axis in ("depth", "distance"):
            assert "_FillValue" not in file.variables[axis].attrs


@pytest.fixture
def segyio():
    return pytest.importorskip("segyio", reason="the extra geo is not installed")


def of_cells(stored, dx_m, devices=(0, 1, 2, 3, 4)):
    """The map as one of cells of ``dx_m``."""
    acquisition = dataclasses.replace(SURVEY, dx_m=dx_m).to_dict()
    provenance = {**stored.provenance, "acquisition": acquisition, "devices": list(devices)}
    return dataclasses.replace(stored, provenance=provenance)


def test_segy_has_a_trace_for_each_column_and_both_maps(fill, tmp_path, segyio):
    stored = fill(event=7)
    export_map(stored, "segy", tmp_path / "map.sgy")
    with segyio.open(tmp_path / "map.sgy") as file:
        np.testing.assert_array_equal(file.iline[1].T, stored.velocity_mps)
        np.testing.assert_array_equal(file.iline[2].T, stored.uncertainty_mps)
        assert segyio.tools.dt(file) == 10_000, "10 m, in millimetres"
        assert file.samples.tolist() == [10.0 * row for row in range(SURVEY.n_depth)], "tops of cells"
        last = file.header[SURVEY.n_width - 1]
        assert last[segyio.TraceField.CDP_X] / -last[segyio.TraceField.SourceGroupScalar] == 690.0
        assert last[segyio.TraceField.TRACE_SAMPLE_COUNT] == SURVEY.n_depth
        assert last[segyio.TraceField.TraceIdentificationCode] == 1, "seismic data"
        assert file.bin[segyio.BinField.MeasurementSystem] == 1, "metres"
        assert b"event 7" in bytes(file.text[0])
    assert (tmp_path / "map.sgy").read_bytes()[3628:3630] == b"\0\1", "bytes 29-30 of the first trace header"
    # Revision 1.0, traces of one length, as SEG-Y has them.
    assert (tmp_path / "map.sgy").read_bytes()[3500:3504] == bytes([1, 0, 0, 1])


def test_another_program_reads_the_segy(fill, tmp_path):
    obspy = pytest.importorskip("obspy", reason="the extra geo is not installed")
    stored = fill(event=7)
    export_map(stored, "segy", tmp_path / "map.sgy")
    traces = obspy.read(tmp_path / "map.sgy")
    assert len(traces) == 2 * SURVEY.n_width
    np.testing.assert_array_equal([trace.data for trace in traces[: SURVEY.n_width]], stored.velocity_mps.T)
    np.testing.assert_array_equal(
        [trace.data for trace in traces[SURVEY.n_width :]], stored.uncertainty_mps.T
    )
    assert {trace.stats.delta for trace in traces} == {0.01}, "10 m, at a millimetre the microsecond"


@pytest.mark.parametrize(
    ("dx_m", "interval", "cell"),
    [
        (2.5, 2500, "2500 mm"),
        (32.767, 32767, "32767 mm"),
        (50.0, 5000, "5000 cm"),
        (400.0, 400, "400 m"),
    ],
)
def test_segy_holds_cells_of_any_size_in_a_unit_that_it_names(fill, tmp_path, segyio, dx_m, interval, cell):
    export_map(of_cells(fill(), dx_m), "segy", tmp_path / "map.sgy")
    with segyio.open(tmp_path / "map.sgy") as file:
        assert file.bin[segyio.BinField.Interval] == interval
        assert file.header[0][segyio.TraceField.TRACE_SAMPLE_INTERVAL] == interval
        assert file.samples[1] == interval / 1000
        assert f"each cell {cell} high" in re.sub(" +(C..)? ", " ", bytes(file.text[0]).decode())


def test_cells_that_no_segy_holds_are_said(fill, tmp_path, segyio):
    with pytest.raises(ExportError, match="cells of 1 mm to 32767 m, got 40000 m; take another format"):
        export_map(of_cells(fill(), 40_000.0), "segy", tmp_path / "map.sgy")


@pytest.mark.parametrize("n_devices", [40, 3000])
def test_the_text_of_a_segy_keeps_to_its_cards(fill, tmp_path, segyio, n_devices):
    export_map(of_cells(fill(), 10.0, range(n_devices)), "segy", tmp_path / "map.sgy")
    with segyio.open(tmp_path / "map.sgy") as file:
        text = bytes(file.text[0]).decode()
    cards = [text[place : place + 80] for place in range(0, 3200, 80)]
    assert [card[:4] for card in cards] == [f"C{number:2} " for number in range(1, 41)]
    assert cards[38].rstrip() == "C39 SEG Y REV1" and cards[39].rstrip() == "C40 END TEXTUAL HEADER"
    assert ("39" in text.split("devices present")[1]) and ("more devices" in text) == (n_devices == 3000)


def test_png_is_a_picture(fill, tmp_path):
    export_map(fill(), "png", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_file_is_replaced_whole_and_nothing_else_is_left(fill, tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    (out / "map").write_text("of yesterday")
    export_map(fill(), kind, out / "map")
    assert [path.name for path in out.iterdir()] == ["map"]
    assert (out / "map").is_dir() or (out / "map").read_bytes() != b"of yesterday"


def test_an_unknown_format_names_the_known_ones(fill, tmp_path):
    with pytest.raises(ExportError, match="expected one of npy, netcdf, zarr, segy, png; got 'bmp'"):
        export_map(fill(), "bmp", tmp_path / "map.bmp")


@pytest.mark.parametrize(("kind", "package"), [("segy", "segyio"), ("zarr", "zarr")])
def test_a_format_without_its_library_names_the_extra(fill, tmp_path, monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ExportError, match=rf"{kind} needs {package}; install it with: pip install -e '.\[geo\]'"
    ):
        export_map(fill(), kind, tmp_path / "map")
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/map", "no such folder"),
        ("file/map", "no such folder"),
        ("folder", "is a folder"),
        ("n" * 300, "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_and_left_as_it_was(fill, tmp_path, kind, out, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    stored = fill()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ExportError, match=message):
        export_map(stored, kind, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_device_that_takes_no_files_is_said(fill, kind):
    """/proc refuses new files even to root, which a folder without write permission would not."""
    from pathlib import Path

    with pytest.raises(ExportError, match="/proc/map: cannot be written"):
        export_map(fill(), kind, Path("/proc/map"))
